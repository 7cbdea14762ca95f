"""Gaussian draws in blocks, and points displaced by them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._internal.blocks import Blocks
from lejax._internal.trees import laid_out_as
from lejax._internal.types import PyTree

# A leaf that is a block of its own is drawn in parts of about this many entries.
BLOCK_NUMBERS = 2**18


class Noise(NamedTuple):
    """A draw of N(0, I), and the random bits of its signs.

    Attributes:
        normals: the draw, as blocks.
        words: blocks with 32 random bits for each entry; None for a single copy.
    """

    normals: Blocks
    words: Blocks | None

    def copies(self, count: int) -> Blocks:
        """`count` copies of the draw with random signs, on a new leading axis.

        Each copy is exactly Gaussian, and any two are uncorrelated. A copy costs a
        fraction of another draw.
        """
        if self.words is None:
            return tuple(block[None] for block in self.normals)
        places = jnp.arange(count, dtype=jnp.uint32)

        def signed(block: jax.Array, words: jax.Array) -> jax.Array:
            # Bit c of a random word is the sign in copy c.
            each = places.reshape(-1, *(1,) * block.ndim)
            return jnp.where((words >> each) & 1 == 0, block, -block)

        return tuple(map(signed, self.normals, self.words))


def standard_normals(
    key: jax.Array, like: Blocks, copies: int, *, pooled: bool
) -> Noise:
    """A draw of N(0, I) in the shapes of `like`, for at most 32 copies.

    With `pooled` the first block is the flat vector, which is drawn at once. Leaves are
    drawn on the devices that hold them.
    """
    normals, words = [], []
    for place, block in enumerate(like):
        in_pool = pooled and place == 0
        own = key if in_pool and len(like) == 1 else jax.random.fold_in(key, place)
        # The partitionable generator discards every second word that it computes.
        with jax.threefry_partitionable(not in_pool):
            draw_key, signs_key = jax.random.split(own) if copies > 1 else (own, own)
            draw = _pool if in_pool else _leaf
            normals.append(draw(draw_key, block))
            if copies > 1:
                words.append(jax.random.bits(signs_key, block.shape, jnp.uint32))
    return Noise(tuple(normals), tuple(words) if copies > 1 else None)


def _pool(key: jax.Array, like: jax.Array) -> jax.Array:
    return jax.random.normal(key, like.shape, like.dtype)


def _leaf(key: jax.Array, like: jax.Array) -> jax.Array:
    """A draw for a leaf that is a block of its own.

    The partitionable generator computes every entry from its place alone, so a sharded
    leaf is drawn on the devices that hold it. On a CPU, parts bound the memory of the
    generator. An accelerator keeps nothing in memory and draws them in parallel.
    """
    shape = like.shape or (1,)
    axis = shape.index(max(shape))
    rows, rest = shape[axis], shape[:axis] + shape[axis + 1 :]
    height = max(1, -(-rows * BLOCK_NUMBERS // max(like.size, BLOCK_NUMBERS)))
    count = -(-rows // height)

    def part(number: jax.Array) -> jax.Array:
        return jax.random.normal(
            jax.random.fold_in(key, number), (height, *rest), like.dtype
        )

    if jax.default_backend() == "cpu":
        # Not `jax.lax.map`: its zeros for a later draw would already take up memory.
        start = jnp.ravel(jax.random.key_data(key))[0].astype(like.dtype)
        drawn = jax.lax.fori_loop(
            0,
            count,
            lambda number, drawn: drawn.at[number].set(part(number)),
            jnp.broadcast_to(start, (count, height, *rest)),
        )
    else:
        drawn = jax.vmap(part)(jnp.arange(count))
    drawn = jnp.moveaxis(drawn.reshape(count * height, *rest)[:rows], 0, axis)
    return laid_out_as(like, drawn.reshape(like.shape))


def translate(params: PyTree, displacement: PyTree) -> PyTree:
    """x + u, added in at least float32 and returned in the dtypes of x.

    In half precision it is rounded at random, with mean x + u. Rounding to the nearest
    would give x itself for every u that is small against the spacing there.
    """

    def moved(x: jax.Array, u: jax.Array) -> jax.Array:
        point = x.astype(u.dtype) + u
        if jnp.finfo(x.dtype).bits < jnp.finfo(u.dtype).bits:
            return _rounded_at_random(point, u, x.dtype)
        return point.astype(x.dtype)

    return jax.tree.map(moved, params, displacement)


def _rounded_at_random(point: jax.Array, u: jax.Array, dtype: Any) -> jax.Array:
    """`point` rounded up or down with mean `point`; ±u share the random number."""
    here, u = jax.lax.stop_gradient((point, u))
    kept = jnp.finfo(dtype)
    # Not by a cast and a cast back, which XLA may remove.
    nearest = jax.lax.reduce_precision(here, kept.nexp, kept.nmant)
    lost = here - nearest
    towards = jnp.where(lost > 0, jnp.inf, -jnp.inf).astype(dtype)
    beyond = jnp.nextafter(nearest.astype(dtype), towards).astype(here.dtype)
    # The random number is a hash of the bits of |u|, so that no key is needed here.
    bits = jax.lax.bitcast_convert_type(jnp.abs(u), jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    dice = (bits >> 8).astype(here.dtype) / 2**24
    chosen = jnp.where(
        jnp.abs(lost) > dice * jnp.abs(beyond - nearest), beyond, nearest
    )
    return (point + (chosen - here)).astype(dtype)
