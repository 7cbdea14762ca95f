"""One Langevin chain: simulated in the reduced space, in law in the null space."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.plan import largest_divisor
from lejax._internal.blocks import Blocks
from lejax._internal.mesh_axes import varying
from lejax._internal.trees import all_finite, compute_dtype
from lejax._internal.types import PyTree, Scalar, ScalarOrSchedule
from lejax._spaces import null_space
from lejax._spaces.null_space import NullSpaceMean, NullSpacePoint
from lejax._spaces.space import Space


class Moves(NamedTuple):
    """The settings of all points of a chain, known before it runs; (J,) each.

    Attributes:
        j: from 0.
        share: the weight of this point in the running mean.
        size: ε_j; NaN if the chain would diverge.
        noise: √(T_j ε_j).
    """

    j: jax.Array
    share: jax.Array
    size: jax.Array
    noise: jax.Array


def at_steps(value: ScalarOrSchedule, steps: jax.Array, dtype: Any) -> jax.Array:
    """The values of a number or a schedule, one for each step."""
    found = jax.vmap(value)(steps) if callable(value) else value
    return jnp.broadcast_to(jnp.asarray(found, dtype), steps.shape)


def make_moves(
    num_steps: int,
    step_size: ScalarOrSchedule,
    temperature: ScalarOrSchedule,
    averaging: Scalar | None,
    tau: jax.Array,
) -> Moves:
    """The moves at this τ.

    `averaging` is the α of an exponential average; None weighs points by ε_j.
    """
    steps = jnp.arange(num_steps, dtype=jnp.int32)
    sizes = at_steps(step_size, steps, tau.dtype)
    spread = at_steps(temperature, steps, tau.dtype)
    if averaging is None:
        share = sizes / jnp.cumsum(sizes)
    else:
        share = jnp.where(steps == 0, 1, jnp.asarray(averaging, tau.dtype))
    # A traced τ cannot be checked in advance: an unstable move becomes NaN here, and is
    # refused.
    moves = jnp.where(sizes < 4 * tau, sizes, jnp.nan)
    return Moves(steps, share, moves, jnp.sqrt(spread * moves))


class Chain(NamedTuple):
    """The carry of the scan over points.

    Attributes:
        candidate: the next point, to be accepted or refused.
        point: the current point.
        gradient: of the loss at `point`.
        mean: of the points so far.
        refused: the number of points that were not finite.
        beside: the laws of candidate, point and mean in the null space, if needed.
    """

    candidate: Blocks
    point: Blocks
    gradient: Blocks
    mean: Blocks
    refused: jax.Array
    beside: tuple[NullSpacePoint, NullSpacePoint, NullSpaceMean] | None


class Outcome(NamedTuple):
    """The result of a chain.

    Attributes:
        mean: of its points.
        beside: their mean in the null space; None if it is not drawn.
        end: its last point, as parameters; None without a warm start.
        refused: the number of points that were not finite.
    """

    mean: Blocks
    beside: PyTree
    end: PyTree
    refused: jax.Array


def run_chain(
    key: jax.Array,
    position: PyTree,
    space: Space,
    tau: jax.Array,
    beta: jax.Array,
    moves: Moves,
    *,
    noise_at_once: int,
    sample_complement: bool,
    axis_name: str | None,
) -> Outcome:
    """Run a chain from `position`, or from x if it is None.

    `noise_at_once` bounds how many moves draw their noise together.
    """
    dtype, num_steps = compute_dtype(space.zeros), moves.j.size
    warm = position is not None
    # The null space matters for the end of a warm chain, or for the mean.
    follows = space.to_null_space is not None and (warm or sample_complement)

    def visit(chain: Chain, inputs: Any) -> tuple[Chain, None]:
        (j, numbers), noise = inputs
        move = Moves(j, *numbers)
        value, gradient = space.value_and_grad(chain.candidate, move.j)
        finite = all_finite((chain.candidate, value, gradient))
        y, gradient = optax.tree.where(
            finite, (chain.candidate, gradient), (chain.point, chain.gradient)
        )
        refused = chain.refused + jnp.where(finite, 0, 1).astype(dtype)
        # Until a start is accepted, the candidate is x.
        started = refused <= move.j.astype(dtype)

        def moved(y: jax.Array, gradient: jax.Array, noise: jax.Array) -> jax.Array:
            one, slope, pull, spread = (
                number.astype(y.dtype)
                for number in (move.size / 2, beta, 1 / tau, move.noise)
            )
            candidate = y - one * (slope * gradient + pull * y) + spread * noise
            return jnp.where(started, candidate, 0)

        beside = chain.beside
        if beside is not None:
            candidate, point, mean = beside
            point = optax.tree.where(finite, candidate, point)
            point, mean = null_space.visited(point, mean, move.share)
            candidate = null_space.moved(
                point, 1 - move.size / (2 * tau), move.noise**2
            )
            nowhere = null_space.point(0, dtype)
            beside = optax.tree.where(started, candidate, nowhere), point, mean
        return Chain(
            candidate=jax.tree.map(moved, y, gradient, noise),
            point=y,
            gradient=gradient,
            mean=jax.tree.map(
                lambda mean, y: mean + move.share.astype(y.dtype) * (y - mean),
                chain.mean,
                y,
            ),
            refused=refused,
            beside=beside,
        ), None

    def block(chain: Chain, moves: Any) -> tuple[Chain, None]:
        # Many small draws at once are faster than one by one.
        keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(moves[0])
        noise = jax.vmap(lambda key: space.noise(key, 1).normals)(keys)
        return jax.lax.scan(visit, chain, (moves, noise))

    first, left, decay = space.zeros, None, 0
    if warm:
        left = optax.tree.sub(position, space.origin)
        # A chain that cannot move must not pull x back to its old position.
        can_move = jnp.isfinite(moves.size[0])
        left = jax.tree.map(lambda leaf: jnp.where(can_move, leaf, 0), left)
        first, decay = space.lower(left), 1
    nowhere = null_space.point(0, dtype)
    chain = Chain(
        candidate=first,
        point=space.zeros,
        gradient=space.zeros,
        mean=space.zeros,
        refused=jnp.zeros((), dtype),
        beside=(null_space.point(decay, dtype), nowhere, null_space.no_mean(dtype))
        if follows
        else None,
    )
    size = largest_divisor(num_steps, noise_at_once)
    # One array of all settings, so that a step takes one slice.
    every = jnp.stack(moves[1:], 1)
    blocks = moves.j.reshape(-1, size), every.reshape(-1, size, every.shape[1])
    chain, _ = jax.lax.scan(block, varying(chain, axis_name), blocks)
    end, beside = (space.lift(chain.point) if warm else None), None
    if chain.beside is not None:
        assert space.to_null_space is not None
        _, point, mean = chain.beside
        zeros = optax.tree.zeros_like(space.origin)
        beside_end, beside = null_space.draw(
            jax.random.fold_in(key, num_steps),
            space,
            zeros if left is None else space.to_null_space(left),
            point,
            mean if sample_complement else None,
        )
        if warm:
            end = optax.tree.add(end, beside_end)
    if warm:
        end = optax.tree.add(space.origin, end)
    return Outcome(
        chain.mean, beside if sample_complement else None, end, chain.refused
    )
