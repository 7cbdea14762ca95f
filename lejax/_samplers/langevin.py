"""One Langevin chain: where the loss sees it, and the law of the rest."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.draws import largest_divisor
from lejax._internal.mesh_axes import varying
from lejax._internal.trees import all_finite, compute_dtype, scaled
from lejax._internal.types import PyTree, Scalar, ScalarOrSchedule
from lejax._spaces import null_space
from lejax._spaces.null_space import NullSpaceMean, NullSpacePoint
from lejax._spaces.space import Space


class Langevin(NamedTuple):
    """What is run.

    Attributes:
        num_steps: J, the points.
        step_size: ε_j, a number or a schedule.
        temperature: T_j, likewise.
        warm_start: whether the chain starts at a given position, or at x.
        sample_complement: whether its mean is drawn where the loss does not see it.
        averaging: α of an exponential average; None for weights ε_j.
        noise_at_once: how many moves' noise is drawn together.
    """

    num_steps: int
    step_size: ScalarOrSchedule
    temperature: ScalarOrSchedule
    warm_start: bool
    sample_complement: bool
    averaging: Scalar | None
    noise_at_once: int


class ChainPoint(NamedTuple):
    """A point of the chain: where the loss sees it, and the law of the rest."""

    seen: PyTree
    unseen: NullSpacePoint


class Chain(NamedTuple):
    """What a visit hands to the next.

    Attributes:
        candidate: where the chain would go.
        point: where it is.
        gradient: of the loss, there.
        mean: of the points so far, where the loss sees them.
        unseen_mean: the law of the rest of that mean.
        weight: Σ_j ε_j over them.
        started: whether a start was accepted.
        refused: the number of points that were not finite.
    """

    candidate: ChainPoint
    point: ChainPoint
    gradient: PyTree
    mean: PyTree
    unseen_mean: NullSpaceMean
    weight: jax.Array
    started: jax.Array
    refused: jax.Array


class Outcome(NamedTuple):
    """What a chain leaves.

    Attributes:
        mean: of its points, where the loss sees it.
        unseen_mean: the rest of it; None where it is not drawn.
        end: its last point, as parameters.
        refused: the number of points that were not finite.
    """

    mean: PyTree
    unseen_mean: PyTree
    end: PyTree
    refused: jax.Array


def run_chain(
    key: jax.Array,
    position: PyTree,
    space: Space,
    tau: jax.Array,
    beta: jax.Array,
    plan: Langevin,
) -> Outcome:
    """Run a chain from `position`, with `warm_start`, or from x."""
    dtype = compute_dtype(space.zeros)

    def at(value: ScalarOrSchedule, j: jax.Array) -> jax.Array:
        return jnp.asarray(value(j) if callable(value) else value, dtype)

    def evaluate(point: ChainPoint, j: Any) -> tuple[PyTree, jax.Array]:
        """The gradient of the loss at a point, and whether all there is finite."""
        value, gradient = space.value_and_grad(point.seen, j)
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
        step, heat = at(plan.step_size, j), at(plan.temperature, j)
        weight = chain.weight + step
        share = step / weight
        if plan.averaging is not None:
            share = jnp.where(j == 0, 1, jnp.asarray(plan.averaging, dtype))
        mean = optax.tree.add(chain.mean, scaled(optax.tree.sub(y, chain.mean), share))
        unseen, unseen_mean = null_space.visited(unseen, chain.unseen_mean, share)
        drift = optax.tree.add(scaled(gradient, beta), scaled(y, 1 / tau))
        # A move that is not stable is no number, and so refused.
        move = jnp.where(stable(step), step, jnp.nan)
        candidate = ChainPoint(
            jax.tree.map(
                lambda y, drift, noise: y + drift + noise,
                y,
                scaled(drift, -move / 2),
                scaled(noise, jnp.sqrt(heat * move)),
            ),
            null_space.moved(unseen, 1 - move / (2 * tau), heat * move),
        )
        candidate = optax.tree.where(started, candidate, at_x)
        refused = chain.refused + jnp.where(finite, 0, 1).astype(dtype)
        point = ChainPoint(y, unseen)
        return Chain(
            candidate, point, gradient, mean, unseen_mean, weight, started, refused
        ), None

    at_x = ChainPoint(space.zeros, null_space.point(0, dtype))
    first, first_unseen = at_x, optax.tree.zeros_like(space.origin)
    if plan.warm_start:
        left = optax.tree.sub(position, space.origin)
        if space.to_null_space is not None:
            first_unseen = space.to_null_space(left)
        first = ChainPoint(space.lower(left), null_space.point(1, dtype))
        # A chain that cannot move must not pull x to where it was left.
        first_step = at(plan.step_size, jnp.zeros((), jnp.int32))
        first = optax.tree.where(stable(first_step), first, at_x)

    def block(chain: Chain, steps: jax.Array):
        # Many small draws at once are faster than one by one.
        keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(steps)
        noise = jax.vmap(lambda key: space.noise(key, 1))(keys)
        noise = jax.tree.map(lambda leaf: leaf[:, 0], noise)
        return jax.lax.scan(visit, chain, (steps, noise))

    chain = Chain(
        candidate=first,
        point=at_x,
        gradient=space.zeros,
        mean=space.zeros,
        unseen_mean=null_space.no_mean(dtype),
        weight=jnp.zeros((), dtype),
        started=jnp.zeros((), bool),
        refused=jnp.zeros((), dtype),
    )
    size = largest_divisor(plan.num_steps, plan.noise_at_once)
    steps = jnp.arange(plan.num_steps, dtype=jnp.int32).reshape(-1, size)
    chain, _ = jax.lax.scan(block, varying(chain, space.axis_name), steps)
    end, unseen_mean = space.lift(chain.point.seen), None
    if space.to_null_space is not None and (plan.warm_start or plan.sample_complement):
        unseen_end, mean = null_space.draw(
            jax.random.fold_in(key, plan.num_steps),
            space,
            first_unseen,
            chain.point.unseen,
            chain.unseen_mean if plan.sample_complement else None,
        )
        end = optax.tree.add(end, unseen_end)
        if plan.sample_complement:
            unseen_mean = mean
    end = optax.tree.add(space.origin, end)
    return Outcome(chain.mean, unseen_mean, end, chain.refused)
