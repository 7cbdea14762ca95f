"""One estimate of a smoothed gradient: what the optax and the pure forms share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lejax._info import Info
from lejax._internal.checks import loss_function
from lejax._internal.loss import call, check_objective, first_batch, without_aux
from lejax._internal.trees import all_finite, scaled
from lejax._internal.types import LossFn, PyTree
from lejax._samplers.sampler import Regularization, Sampler


def check_sampler(sampler: Any, *regularizations: Regularization) -> None:
    """Refuse what is not a sampler, or one of the other regularisation."""
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
    *,
    value_fn: LossFn,
    batch: PyTree,
    tau: ArrayLike,
    beta: ArrayLike,
    has_aux: bool,
    displacement: bool = False,
) -> tuple[PyTree, PyTree, Info]:
    """-δ̂/(βτ) in the dtypes of params, zero where it would not be finite.

    -δ̂ with `displacement`: half precision holds it where it may not hold the gradient.
    """
    aux, loss = None, loss_function(value_fn)
    if has_aux:
        centre = first_batch(batch) if sampler.inner_batches else batch
        check_objective(value_fn, params, centre, has_aux=True)
        _, aux = call(value_fn, params, centre)
        loss = without_aux(value_fn)

    step, state, info = sampler.step(
        key, state, params, value_fn=loss, batch=batch, tau=tau, beta=beta
    )
    # The sampler may have chosen another β than was passed.
    factor = 1 if displacement else 1 / (info.beta_used * info.tau_used)
    grads = jax.tree.map(
        lambda g, p: g.astype(p.dtype),
        scaled(step, -factor),
        params,
    )
    finite = all_finite(grads)
    info = info._replace(
        effective_sample_size=jnp.where(finite, info.effective_sample_size, 0),
        num_evaluations=info.num_evaluations + int(has_aux),
        aux=aux,
    )
    return optax.tree.where(finite, grads, optax.tree.zeros_like(grads)), state, info
