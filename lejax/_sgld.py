"""Stochastic gradient Langevin dynamics for the local entropy: Algorithm 3."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax import _complement as complement
from lejax._complement import ComplementPoint, ComplementSum
from lejax._draws import chunk_limit, largest_divisor
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


class Point(NamedTuple):
    """A point of the chain: where the loss sees it, and the law of the rest."""

    seen: PyTree
    unseen: ComplementPoint


class Chain(NamedTuple):
    """What a visit hands to the next.

    Attributes:
        candidate: where the chain would go.
        point: where it is.
        gradient: of the loss, there.
        total: Σ_j ε_j y_j over the points so far, where the loss sees them.
        unseen_total: the law of the rest of that sum.
        started: whether a start was accepted.
        refused: the number of points that were not finite.
    """

    candidate: Point
    point: Point
    gradient: PyTree
    total: PyTree
    unseen_total: ComplementSum
    started: jax.Array
    refused: jax.Array


def sgld(
    num_steps: int,
    step_size: Any,
    *,
    temperature: Any = 1.0,
    warm_start: bool = True,
    inner_batches: bool = False,
    reduction: bool = True,
    sample_complement: bool = False,
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
        reduction: run the chain in the directions alone that the loss can see on its
            batch, or on all inner batches, where `reduction_report` finds them: exact,
            and faster. Where it cannot see, the chain is known in closed form; its end
            is drawn once, for the warm start, and its mean under q, 0, is the estimate.
        sample_complement: with `reduction`, draw the chain's own average there as well,
            jointly with its end: the estimate then has the law of the full chain.

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

        def evaluate(point: Point, j: Any) -> tuple[PyTree, jax.Array]:
            """The gradient of the loss at a point, and whether all there is finite."""
            value, gradient = jax.value_and_grad(space.value_fn)(point.seen, j)
            return gradient, all_finite((point, value, gradient))

        def stable(step: jax.Array) -> jax.Array:
            """Where τ is traced, only here is it seen that a chain would diverge."""
            return step < 4 * tau

        def visit(chain: Chain, inputs: tuple[jax.Array, PyTree]):
            j, noise = inputs
            there, finite = evaluate(chain.candidate, j)
            (y, unseen), gradient = optax.tree.where(
                finite, (chain.candidate, there), (chain.point, chain.gradient)
            )
            # Until a start is accepted the candidate is x itself.
            started = chain.started | finite
            step, heat = at(step_size, j, dtype), at(temperature, j, dtype)
            total = optax.tree.add(chain.total, scaled(y, step))
            unseen, unseen_total = complement.visited(unseen, chain.unseen_total, step)
            drift = optax.tree.add(scaled(gradient, beta), scaled(y, 1 / tau))
            # A move that is not stable is no number, and so refused.
            move = jnp.where(stable(step), step, jnp.nan)
            candidate = Point(
                jax.tree.map(
                    lambda y, drift, noise: y + drift + noise,
                    y,
                    scaled(drift, -move / 2),
                    scaled(noise, jnp.sqrt(heat * move)),
                ),
                complement.moved(unseen, 1 - move / (2 * tau), heat * move),
            )
            candidate = optax.tree.where(started, candidate, at_x)
            refused = chain.refused + jnp.where(finite, 0, 1).astype(dtype)
            point = Point(y, unseen)
            return Chain(
                candidate, point, gradient, total, unseen_total, started, refused
            ), step

        def block(chain: Chain, steps: jax.Array):
            # Many small draws at once are faster than one by one.
            keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(steps)
            noise = jax.vmap(lambda key: space.noise(key, 1))(keys)
            noise = jax.tree.map(lambda leaf: leaf[:, 0], noise)
            return jax.lax.scan(visit, chain, (steps, noise))

        at_x = Point(space.zeros, complement.point(0, dtype))
        first, first_unseen = at_x, optax.tree.zeros_like(space.origin)
        if warm_start:
            left = optax.tree.sub(state.position, space.origin)
            if space.outside is not None:
                first_unseen = space.outside(left)
            first = Point(space.lower(left), complement.point(1, dtype))
            # A chain that cannot move must not pull x to where it was left.
            first_step = at(step_size, jnp.zeros((), jnp.int32), dtype)
            first = optax.tree.where(stable(first_step), first, at_x)
        chain = Chain(
            candidate=first,
            point=at_x,
            gradient=space.zeros,
            total=space.zeros,
            unseen_total=complement.no_sum(dtype),
            started=jnp.zeros((), bool),
            refused=jnp.zeros((), dtype),
        )
        size = largest_divisor(num_steps, chunk_limit(space.zeros))
        steps = jnp.arange(num_steps).reshape(-1, size)
        chain, weights = jax.lax.scan(block, chain, steps)

        total, end = space.lift(chain.total), space.lift(chain.point.seen)
        if space.outside is not None and (warm_start or sample_complement):
            unseen_end, unseen_total = complement.draw(
                jax.random.fold_in(key, num_steps),
                space,
                first_unseen,
                chain.point.unseen,
                chain.unseen_total if sample_complement else None,
            )
            end = optax.tree.add(end, unseen_end)
            total = optax.tree.add(total, unseen_total)
        info = make_info(dtype, num_steps, nonfinite_fraction=chain.refused / num_steps)
        if warm_start:
            state = SGLDState(optax.tree.add(space.origin, end))
        return scaled(total, 1 / weights.sum()), state, info

    return make_sampler(
        run,
        "sgld",
        "local entropy",
        init=(lambda params: SGLDState(widen(params))) if warm_start else stateless,
        check=check,
        differentiable=True,
        inner_batches=inner_batches,
        reduction=reduction,
    )
