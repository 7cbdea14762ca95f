"""The gradient of the heat-regularised loss, for the head of an optax chain."""

from __future__ import annotations

import jax
import optax

from lejax._internal.types import Mask, PyTree, ScalarOrSchedule
from lejax._samplers.gradient import check_sampler
from lejax._samplers.sampler import Sampler
from lejax._transforms.smoothing import smoothed


def heat(
    sampler: Sampler,
    tau: ScalarOrSchedule,
    *,
    key: jax.Array,
    mask: Mask = None,
    has_aux: bool | PyTree = False,
    displacement: bool = False,
    shrink: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The gradient of the heat-regularised loss, as an optax transformation.

    Use it to minimise the Gaussian average of a loss: with `pathwise` or
    `robbins_monro` if the loss has a gradient, else with `score_function`. Use
    `local_entropy` instead if the best samples should have the largest weights.
    Elsewhere this is called randomized smoothing or Gaussian homotopy; by
    `score_function` it is the evolution strategy of OpenAI, and by `pathwise` training
    with Gaussian noise on the weights.

        F^H_τ(x) = E_φ f(X),   φ = N(x, τI),
        ∇F^H_τ(x) = E_φ ∇f(X) = E_φ[(f(X) - b)(X - x)] / τ.

    `pathwise` and `score_function` estimate this gradient at x. `robbins_monro`
    estimates (x_k - x_{k+1})/τ = ∇F^H_τ(x_{k+1}), so that
    `optax.chain(lejax.heat(...), optax.sgd(tau))` is Algorithm 2 of the paper.

    Args:
        sampler: `robbins_monro`, `pathwise` or `score_function`.
        tau: τ, the variance of the smoothing, in squared units of the parameters: a
            positive number, or a schedule of the number of updates so far.
        key: a typed key, `jax.random.key(seed)`.
        mask: the leaves to perturb, as in `local_entropy`.
        has_aux: whether `value_fn` returns a pair, as in `local_entropy`.
        displacement: return τ times the gradient. `optax.sgd(1.0)` behind it is
            Algorithm 2 for any schedule of τ.
        shrink: multiply the gradient by the share of it that is signal, as in
            `local_entropy`; with `pathwise` or `score_function`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `SmoothingState`, used like
        `local_entropy`.

    Raises:
        ValueError, TypeError: as `local_entropy`.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax, optax
        >>> def loss(x):
        ...     return jnp.sum(x**2) / 2
        >>> tx = optax.chain(
        ...     lejax.heat(lejax.pathwise(2), tau=0.1, key=jax.random.key(0)),
        ...     optax.sgd(0.5),
        ... )
        >>> x = jnp.ones(3)
        >>> updates, state = tx.update(None, tx.init(x), x, value_fn=loss)
        >>> print(optax.apply_updates(x, updates))
        [0.5 0.5 0.5]

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 4.
    """
    check_sampler(sampler, "heat")
    return smoothed(sampler, tau, key, 1.0, mask, has_aux, displacement, shrink=shrink)
