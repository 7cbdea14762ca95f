"""Gaussian draws in the shapes of a tree, and points moved by them."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from lejax._internal.trees import compute_dtype, is_large, laid_out_as
from lejax._internal.types import PyTree

# And so many at once of a leaf of more.
BLOCK_NUMBERS = 2**18


def standard_normals(key: jax.Array, like: PyTree, copies: int) -> PyTree:
    """Draws of N(0, I) in the shapes of `like`, on a new leading axis of `copies`.

    At most 32 copies are the same numbers under random signs: each of them is exactly
    Gaussian, any two of them are uncorrelated, at a fraction of the price.
    """
    leaves, structure = jax.tree.flatten(like)
    if is_large(like):
        drawn = [
            _under_signs(*_large_draw(jax.random.fold_in(key, place), leaf), copies)
            for place, leaf in enumerate(leaves)
        ]
        return structure.unflatten(drawn)
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))
    # All leaves at once: the last axis of a leaf may be too short for the processor.
    # The partitionable generator throws away every second word that it makes.
    with jax.threefry_partitionable(False):
        key, signs_key = jax.random.split(key)
        pool = jax.random.normal(key, (ends[-1],), compute_dtype(like))
        numbers = _under_signs(pool, signs_key, copies)
    return structure.unflatten(
        numbers[:, end - leaf.size : end]
        .reshape(copies, *leaf.shape)
        .astype(leaf.dtype)
        for end, leaf in zip(ends, leaves, strict=True)
    )


def _under_signs(drawn: jax.Array, key: jax.Array, copies: int) -> jax.Array:
    if copies == 1:
        return drawn[None]
    # Bit c of a random word is the sign in copy c.
    words = jax.random.bits(key, drawn.shape, jnp.uint32)
    places = jnp.arange(copies, dtype=jnp.uint32).reshape(-1, *(1,) * drawn.ndim)
    return jnp.where((words >> places) & 1 == 0, drawn, -drawn)


def _large_draw(key: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A draw of one leaf of many, and a key for its signs.

    The partitionable generator makes every number from its place alone: a leaf that is
    split over devices is drawn where it lies. Blocks bound what the generator needs
    besides; an accelerator, which keeps none of it, draws them side by side.
    """
    key, signs_key = jax.random.split(key)
    shape = like.shape or (1,)
    axis = shape.index(max(shape))
    rows, rest = shape[axis], shape[:axis] + shape[axis + 1 :]
    height = max(1, -(-rows * BLOCK_NUMBERS // max(like.size, BLOCK_NUMBERS)))
    blocks = -(-rows // height)

    def block(number: jax.Array) -> jax.Array:
        with jax.threefry_partitionable(True):
            return jax.random.normal(
                jax.random.fold_in(key, number), (height, *rest), like.dtype
            )

    if jax.default_backend() == "cpu":
        # Not `jax.lax.map`: its zeros, of a draw still to come, would take up memory.
        start = jnp.ravel(jax.random.key_data(key))[0].astype(like.dtype)
        drawn = jax.lax.fori_loop(
            0,
            blocks,
            lambda number, drawn: drawn.at[number].set(block(number)),
            jnp.broadcast_to(start, (blocks, height, *rest)),
        )
    else:
        drawn = jax.vmap(block)(jnp.arange(blocks))
    drawn = jnp.moveaxis(drawn.reshape(blocks * height, *rest)[:rows], 0, axis)
    return laid_out_as(like, drawn.reshape(like.shape)), signs_key


def translate(params: PyTree, displacement: PyTree) -> PyTree:
    """x + u, added in at least float32 and returned in the dtypes of x.

    Of half precision it is a neighbour at random, x + u on average: the nearest one
    would be x itself, for every u that is small against the spacing there.
    """

    def moved(x: jax.Array, u: jax.Array) -> jax.Array:
        point = x.astype(u.dtype) + u
        if jnp.finfo(x.dtype).bits < jnp.finfo(u.dtype).bits:
            return _rounded_at_random(point, u, x.dtype)
        return point.astype(x.dtype)

    return jax.tree.map(moved, params, displacement)


def _rounded_at_random(point: jax.Array, u: jax.Array, dtype: Any) -> jax.Array:
    """Upwards or downwards, in proportion; as for u so, mirrored, for -u."""
    here, u = jax.lax.stop_gradient((point, u))
    kept = jnp.finfo(dtype)
    # Not by a cast and back, which XLA takes for superfluous.
    nearest = jax.lax.reduce_precision(here, kept.nexp, kept.nmant)
    lost = here - nearest
    towards = jnp.where(lost > 0, jnp.inf, -jnp.inf).astype(dtype)
    beyond = jnp.nextafter(nearest.astype(dtype), towards).astype(here.dtype)
    # The dice are the bits of |u| itself, well mixed: no key has to come this far.
    bits = jax.lax.bitcast_convert_type(jnp.abs(u), jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    dice = (bits >> 8).astype(here.dtype) / 2**24
    chosen = jnp.where(
        jnp.abs(lost) > dice * jnp.abs(beyond - nearest), beyond, nearest
    )
    return (point + (chosen - here)).astype(dtype)
