"""The average of gradients over draws, in one pass and without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.draws import Chunk, Draws, evaluate
from lejax._estimators.weights import Average, average, noise_of_sum
from lejax._internal.blocks import Blocks
from lejax._internal.trees import all_finite, inner, scaled
from lejax._internal.types import PyTree
from lejax._spaces.space import Space


class MeanGradient(NamedTuple):
    """The average over the draws whose loss and gradient are finite.

    Attributes:
        of_losses: the average of the losses.
        mean: the average of the gradients; 0 if no draw is finite.
        square: Σ|m|² over units, for their contributions m to the mean.
        products: Σu∇fᵀ as a covariance keeps it; None without one.
        offset: Σu, likewise.
    """

    of_losses: Average
    mean: Blocks
    square: jax.Array
    products: PyTree
    offset: Blocks | None

    def squared_error(self, scale: jax.Array) -> jax.Array:
        """The squared error of the mean times `scale`, from its units."""
        length = inner(self.mean, self.mean, scale.dtype) * scale**2
        return noise_of_sum(self.square * scale**2, length, self.of_losses.shares)


def mean_gradient(
    draws: Draws, centre: Blocks, products: Callable[..., PyTree] | None = None
) -> MeanGradient:
    """Average ∇f over the draws about `centre`."""
    space, units, dtype = draws.space, draws.units, draws.scale.dtype

    def fn(u: Blocks, sign: Any) -> tuple[jax.Array, Blocks]:
        move = u if sign is None else scaled(u, sign)
        return space.value_and_grad(optax.tree.add(centre, move))

    def absorb(total: PyTree, chunk: Chunk) -> tuple[PyTree, PyTree]:
        values, grads = chunk.outputs
        finite = jax.vmap(jax.vmap(jax.vmap(all_finite)))((values, grads))
        counts = finite if chunk.real is None else finite & chunk.real

        def kept(leaf: jax.Array) -> jax.Array:
            mask = counts.reshape(counts.shape + (1,) * (leaf.ndim - 3))
            return jnp.where(mask, leaf, 0)

        grads = tuple(map(kept, grads))
        by_unit = tuple(leaf.sum((0, 2)) for leaf in grads)
        summed = tuple(leaf.sum(0) for leaf in by_unit)
        sums: PyTree = summed, inner(by_unit, by_unit, dtype)
        if products is not None:
            sign = chunk.signs.astype(dtype)[..., None]
            # The difference within a pair first: common parts then leave no rounding.
            odd = tuple(
                (leaf * sign.reshape(sign.shape + (1,) * (leaf.ndim - 3))).sum(0)
                for leaf in grads
            )
            lines = [
                jax.tree.map(
                    lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]),
                    jax.vmap(jax.vmap(space.tree))(blocks),
                )
                for blocks in (chunk.u, odd)
            ]
            either = (sign * counts.astype(dtype)).sum(0)
            offset = tuple(jnp.tensordot(either, block, 2) for block in chunk.u)
            sums = *sums, products(*lines, jnp.ones(either.size, dtype)), offset
        else:
            sums = *sums, None, None
        each = jnp.moveaxis(values, 0, 1), jnp.moveaxis(finite, 0, 1)
        return optax.tree.add(total, sums), each

    zeros: PyTree = space.zeros, jnp.zeros((), dtype), None, None
    if products is not None:
        one = jax.tree.map(lambda leaf: leaf[None], space.tree(space.zeros))
        zeros = *zeros[:2], products(one, one, jnp.zeros(1, dtype)), space.zeros
    found = evaluate(draws, fn, absorb, zeros)
    sums = jax.tree.map(lambda leaf: leaf.sum(0), found.sums)
    if units.axis_name is not None:
        sums = jax.lax.psum(sums, units.axis_name)
    total, square, learnt, offset = sums
    values, finite = (
        units.all_of(list(own)) for own in zip(*found.values, strict=True)
    )
    of_losses = average(values, units, finite)
    each = 1 / jnp.maximum(of_losses.size, 1)
    mean = scaled(total, each)
    return MeanGradient(of_losses, mean, square * each**2, learnt, offset)


def curvature(
    found: MeanGradient, space: Space, products: Callable[..., PyTree]
) -> PyTree:
    """The covariance of u and ∇f over the finite draws, as `products` keeps it.

    If some draws failed, u has a mean, which is unrelated to ∇²f.
    """
    assert found.offset is not None
    each = 1 / jnp.maximum(found.of_losses.size, 1)
    one, other = (
        jax.tree.map(lambda leaf: leaf[None], space.tree(blocks))
        for blocks in (found.offset, found.mean)
    )
    of_means = products(one, other, each[None])
    return optax.tree.sub(scaled(found.products, each), of_means)
