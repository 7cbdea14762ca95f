"""Pure functions: one step of the paper's algorithms, and a value with its gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from lejax._info import Info
from lejax._internal.checks import float_leaves, positive, typed_key
from lejax._internal.random import translate
from lejax._internal.trees import all_finite
from lejax._internal.types import LossFn, PyTree, Scalar
from lejax._samplers.gradient import check_sampler, estimate_gradient
from lejax._samplers.sampler import Sampler, check_smoothing
from lejax._tracing.compiled import run_compiled
from lejax._tracing.loss import Loss


def step_fn(
    value_fn: LossFn, sampler: Sampler, tau: Scalar, *, beta: Scalar = 1.0
) -> Callable[..., PyTree]:
    """One step of Algorithm 1 or 2 of the paper, as a pure function.

    Use it for the paper's algorithms without an optimizer. For momentum, schedules of τ
    or state between updates, use `local_entropy` or `heat` in an optax chain; for a
    whole run, `minimize`. With `importance` the step is the weighted mean of model
    predictive path integral control (MPPI); with `robbins_monro` it is an implicit
    gradient step.

        x_{k+1} = E_q[X], X ~ q ∝ exp(-βf(x') - |x' - x_k|²/2τ)      (importance, sgld),
        x_{k+1} = argmin_x KL(φ_{x,τ} ‖ q_{x_k,τ})                     (robbins_monro).

    With `pathwise` or `score_function` it is x_k - τ∇F^H_τ(x_k), the explicit form of
    the second. If a step is not finite, the parameters stay as they are.

    Args:
        value_fn: the scalar loss f, `value_fn(params, batch)`, or `value_fn(params)` if
            no batch is passed.
        sampler: any sampler; a chain starts anew at the parameters in every call.
        tau: τ > 0, the variance of the smoothing, in squared units of the parameters.
        beta: β > 0, the inverse temperature; 1 for heat.

    Returns:
        A pure function `(params, key, batch=None) -> params`.

    Raises:
        ValueError: `tau` or `beta` is not positive and finite.
        TypeError: `sampler` is not a sampler.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> def loss(x, y):
        ...     return jnp.sum((x - y) ** 2) / 2
        >>> step = jax.jit(lejax.step_fn(loss, lejax.importance(20_000), tau=1.5))
        >>> x = step(jnp.zeros(2), jax.random.key(0), jnp.array([1.0, -1.0]))
        >>> print(x.round(1) + 0.0)  # τ/(1 + τ) of the way
        [ 0.6 -0.6]

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, sections 3.1 and 4.1, Algorithms 1 and 2.
    """
    check_sampler(sampler, "local entropy", "heat")
    check_smoothing(sampler, positive("tau", tau), beta)

    def step(params: PyTree, key: jax.Array, batch: PyTree = None) -> PyTree:
        params = float_leaves(params)
        displacement, _, _ = sampler.estimate(
            key,
            sampler.init(params),
            params,
            value_fn=value_fn,
            batch=batch,
            tau=tau,
            beta=beta,
        )
        moved = translate(params, displacement)
        return optax.tree.where(all_finite(moved), moved, params)

    return step


def value_and_grad(
    value_fn: LossFn,
    sampler: Sampler,
    tau: Scalar,
    *,
    beta: Scalar = 1.0,
    has_aux: bool = False,
) -> Callable[..., tuple[tuple[jax.Array, Info], PyTree]]:
    """The smoothed loss and its gradient, like `jax.value_and_grad`.

    Use it in training loops that pass no extra arguments to their optimizer, such as
    Flax's `TrainState`. In an optax chain prefer `local_entropy` or `heat`: they keep
    the key, schedules and the state of the sampler between updates.

        ∇F_{τ,β}(x) = (x - E_q[X]) / (βτ),   ∇F^H_τ(x) = E_φ ∇f(X);

    with `robbins_monro` it is (x - x_{k+1})/τ = ∇F^H_τ(x_{k+1}). If a gradient is not
    finite, zeros are returned in its place.

    Args:
        value_fn: the scalar loss f, `value_fn(params, batch)`, or `value_fn(params)` if
            no batch is passed. With `has_aux` it returns the pair (f, aux).
        sampler: any sampler; a chain starts anew at the parameters in every call.
        tau: τ > 0, the variance of the smoothing, in squared units of the parameters.
        beta: β > 0, the inverse temperature; 1 for heat.
        has_aux: whether `value_fn` returns a pair. The aux at the parameters themselves
            is `info.aux`; it costs one more evaluation.

    Returns:
        A pure function `(params, key, batch=None) -> ((value, info), grads)`. The value
        is `info.objective`: NaN for `sgld`, which cannot estimate it.

    Raises:
        ValueError: `tau` or `beta` is not positive and finite.
        TypeError: `sampler` is not a sampler.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> def loss(x):
        ...     return jnp.sum(x**2) / 2
        >>> smoothed = lejax.value_and_grad(loss, lejax.importance(20_000), tau=1.5)
        >>> (value, info), grads = jax.jit(smoothed)(jnp.ones(2), jax.random.key(0))
        >>> print(f"{value:.1f}", grads.round(1))  # log(1 + τ) + 1/(1 + τ), x/(1 + τ)
        1.3 [0.4 0.4]

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, equations (3.4) and (3.5).
    """
    check_sampler(sampler, "local entropy", "heat")
    check_smoothing(sampler, positive("tau", tau), beta)

    def smoothed(
        params: PyTree, key: jax.Array, batch: PyTree = None
    ) -> tuple[tuple[jax.Array, Info], PyTree]:
        params = float_leaves(params)
        typed_key(key)
        return run_compiled(
            _value_and_grad,
            sampler,
            sampler.loss(value_fn, params, batch, has_aux=has_aux),
            *(params, key, tau, beta),
            differentiated=sampler.traits.needs_gradient,
            inline=any(sampler.axes),
        )

    return smoothed


def _value_and_grad(
    sampler: Sampler,
    loss: Loss,
    params: PyTree,
    key: jax.Array,
    tau: Scalar,
    beta: Scalar,
) -> tuple[tuple[jax.Array, Info], PyTree]:
    state = sampler.init(params)
    grads, _, info, _ = estimate_gradient(sampler, key, state, params, loss, tau, beta)
    return (info.objective, info), grads
