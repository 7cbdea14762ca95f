"""Stochastic gradient Langevin dynamics for the local entropy: Algorithm 3."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._info import Info, make_info
from lejax._objective import Coordinates
from lejax._sampler import Sampler, make_sampler, stateless
from lejax._trees import PyTree, all_finite, compute_dtype, scaled, widen
from lejax._validate import positive_count, positive_or_schedule


class SGLDState(NamedTuple):
    """The chain between two updates.

    Attributes:
        position: x_J, in the shapes of the parameters and at least float32.
    """

    position: PyTree


def sgld(
    num_steps: int,
    step_size: Any,
    *,
    temperature: Any = 1.0,
    warm_start: bool = True,
    inner_batches: bool = False,
) -> Sampler:
    """Langevin dynamics for E_q[X]: a chain of gradient steps (Algorithm 3).

        x_{j+1} = x_j - (ε_j/2) [β∇f(x_j) + (x_j - x)/τ] + η_j,   η_j ~ N(0, T_j ε_j I),
        E_q[X] ≈ Σ_j ε_j x_j / Σ_j ε_j   over x_1, …, x_J,

    for q ∝ exp(-βf(x') - |x' - x|²/2τ). The chain starts where that of the previous
    update ended, or at x. A move to a point where the loss or its gradient is not
    finite is refused and counted: the chain stays. Where its start is refused, the
    chain starts at x, one point later.

    Args:
        num_steps: J ≥ 1, the points of the chain, its start among them: J - 1 moves.
        step_size: ε_j, a variance like τ: a positive number, or a schedule that is
            called with j = 0, 1, … (int32) for the paper's ε_1, ε_2, …. A first step
            of 4τ or more is an error, since the quadratic part of the drift alone then
            diverges; where a schedule of τ falls that far under `jit`, such moves are
            refused, the chain stays at x, and the update is zero.
        temperature: T_j, a positive number or a schedule. 1 samples q; T_j = ε_j gives
            η_j the standard deviation ε_j; a small constant is the thermal noise of
            Entropy-SGD.
        warm_start: start at the previous update's last point; False starts at x. The
            pure functions `step_fn` and `value_and_grad` always start at x.
        inner_batches: the batch has a leading axis of K batches, and the gradient at
            the j-th point is that of batch j mod K (the aux of `has_aux` that of the
            first); False uses the whole batch.

    Returns:
        A `Sampler` for `local_entropy`. Its info knows `num_evaluations` (of ∇f, J) and
        `nonfinite_fraction` (of the J points, those refused); a chain knows neither F_τ
        nor independent units, so the other fields are NaN.

    Raises:
        ValueError: `num_steps` is not a positive integer; `step_size` or `temperature`
            is not positive; `step_size` ≥ 4τ; with `inner_batches`, the leaves of the
            batch have no common leading axis.
        TypeError: `value_fn` returns integers, which have no gradient.

    Example:
        The step on f(x) = x²/2 is -τ/(1 + τ) x, here -1/3 of x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.sgld(20_000, step_size=0.05)
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, sampler, tau=0.5)
        >>> print(f"{step(jnp.array(3.0), jax.random.key(0)):.1f}")
        2.0

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 5.1.1, Algorithm 3; Chaudhari et
        al., *Entropy-SGD* (thermal noise).
    """
    num_steps = positive_count("num_steps", num_steps)
    first_step_size = positive_or_schedule("step_size", step_size)
    positive_or_schedule("temperature", temperature)

    def check(tau: float) -> None:
        if first_step_size is not None and first_step_size >= 4 * tau:
            raise ValueError(
                f"step_size starts at {first_step_size}, but a Langevin chain diverges "
                f"unless it is below 4 * tau = {4 * tau}; lower step_size or raise tau."
            )

    def at(value: Any, j: jax.Array, dtype: Any) -> jax.Array:
        return jnp.asarray(value(j) if callable(value) else value, dtype)

    def run(
        key: jax.Array,
        state: PyTree,
        space: Coordinates,
        tau: Any,
        beta: Any,
    ) -> tuple[PyTree, PyTree, Info]:
        dtype = compute_dtype(space.zeros)

        def evaluate(y: PyTree, j: Any) -> tuple[PyTree, jax.Array]:
            """The gradient of the loss at y, and whether y and all there is finite."""
            value, gradient = jax.value_and_grad(space.value_fn)(y, j)
            return gradient, all_finite((y, value, gradient))

        def stable(step: jax.Array) -> jax.Array:
            """Where τ is traced, only here is it seen that a chain would diverge."""
            return step < 4 * tau

        def visit(carry: tuple[PyTree, ...], j: jax.Array):
            candidate, y, gradient, total, started, refused = carry
            there, finite = evaluate(candidate, j)
            y, gradient = optax.tree.where(finite, (candidate, there), (y, gradient))
            # Until a start is accepted the candidate is x itself.
            started = started | finite
            refused += jnp.where(finite, 0, 1).astype(dtype)
            step, heat = at(step_size, j, dtype), at(temperature, j, dtype)
            total = optax.tree.add(total, scaled(y, step))
            drift = optax.tree.add(scaled(gradient, beta), scaled(y, 1 / tau))
            noise = space.noise(jax.random.fold_in(key, j))
            # A move that is not stable is no number, and so refused.
            move = jnp.where(stable(step), step, jnp.nan)
            candidate = jax.tree.map(
                lambda y, drift, noise: jnp.where(started, y + drift + noise, 0),
                y,
                scaled(drift, -move / 2),
                scaled(noise, jnp.sqrt(heat * move)),
            )
            return (candidate, y, gradient, total, started, refused), step

        start = space.zeros
        if warm_start:
            start = space.lower(optax.tree.sub(state.position, space.origin))
            # A chain that cannot move must not pull x to where it was left.
            first = at(step_size, jnp.zeros((), jnp.int32), dtype)
            start = optax.tree.where(stable(first), start, space.zeros)
        carry = (
            start,
            *(space.zeros,) * 3,
            jnp.zeros((), bool),
            jnp.zeros((), dtype),
        )
        (_, end, _, total, _, refused), steps = jax.lax.scan(
            visit, carry, jnp.arange(num_steps)
        )
        displacement = scaled(total, 1 / steps.sum())
        info = make_info(dtype, num_steps, nonfinite_fraction=refused / num_steps)
        if warm_start:
            state = SGLDState(optax.tree.add(space.origin, space.lift(end)))
        return displacement, state, info

    return make_sampler(
        run,
        "sgld",
        "local entropy",
        init=(lambda params: SGLDState(widen(params))) if warm_start else stateless,
        check=check,
        differentiable=True,
        inner_batches=inner_batches,
    )
