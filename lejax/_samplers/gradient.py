"""One estimate of a smoothed gradient, for the optax and the pure interfaces."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lejax._info import Info
from lejax._internal.trees import all_finite, of_strong_types, scaled
from lejax._internal.types import PyTree
from lejax._samplers.sampler import Regularization, Sampler
from lejax._tracing.loss import Loss, OutsideLoss


def check_sampler(sampler: Any, *regularizations: Regularization) -> None:
    """Raise unless it is a sampler of one of these regularisations."""
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"sampler must be a lejax sampler, got {sampler!r}; "
            "pass for example lejax.importance(num_samples=1000)."
        )
    if sampler.regularization not in regularizations:
        mend = "heat" if sampler.regularization == "heat" else "local_entropy"
        raise ValueError(
            f"sampler={sampler.name} estimates a step of {sampler.regularization} "
            f"regularisation, not of {regularizations[0]}; "
            f"pass it to lejax.{mend} instead."
        )


def estimate_gradient(
    sampler: Sampler,
    key: jax.Array,
    state: PyTree,
    params: PyTree,
    loss: Loss | OutsideLoss,
    tau: Any,
    beta: Any,
    *,
    displacement: bool = False,
    learns: Any = None,
) -> tuple[PyTree, PyTree, Info, PyTree]:
    """The smoothed gradient, -δ̂/(βτ), in the dtypes of params; 0 if not finite.

    With `displacement` it is -δ̂, which half precision may hold even if it cannot hold
    the gradient. Also returns the state, the info, and the sums for a covariance.
    """
    sampler.check(tau)
    step, state, info, products = sampler.run(
        key, state, params, loss, tau, beta, learns
    )
    # The sampler may have chosen another β than was passed.
    factor = 1 if displacement else 1 / (info.beta_used * info.tau_used)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), scaled(step, -factor), params)
    # The displacement is finite, so only a cast to fewer bits can overflow.
    if any(
        jnp.finfo(g.dtype).bits < jnp.finfo(d.dtype).bits
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(step), strict=True)
    ):
        finite = all_finite(grads)
        grads = optax.tree.where(finite, grads, optax.tree.zeros_like(grads))
        effective = jnp.where(finite, info.effective_sample_size, 0)
        info = info._replace(effective_sample_size=effective)
    if isinstance(loss, Loss) and loss.aux is not None:
        info = info._replace(
            aux=of_strong_types(loss.outputs(params)[1]),
            num_evaluations=info.num_evaluations + 1,
        )
    return grads, state, info, products
