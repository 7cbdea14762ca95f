"""Arithmetic of parameter trees in explicit dtypes; the rest is `optax.tree`."""

from __future__ import annotations

import itertools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

PyTree: TypeAlias = Any


def _at_least_float32(dtype: Any) -> Any:
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def compute_dtype(tree: PyTree) -> Any:
    """The dtype of losses, weights and sums: the widest leaf's, at least float32."""
    dtypes = [_at_least_float32(leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def widen(tree: PyTree) -> PyTree:
    """`tree` with leaves of at least float32: half precision loses small steps."""
    return jax.tree.map(lambda leaf: leaf.astype(_at_least_float32(leaf.dtype)), tree)


def standard_normals(key: jax.Array, like: PyTree, copies: int) -> PyTree:
    """Draws of N(0, I) in the shapes of `like`, on a new leading axis of `copies`.

    At most 32 copies are the same numbers under random signs: each of them is exactly
    Gaussian, any two of them are uncorrelated, at a fraction of the price.
    """
    leaves, structure = jax.tree.flatten(like)
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))
    # All leaves at once: the last axis of a leaf may be too short for the processor.
    # The partitionable generator throws away every second word that it makes.
    with jax.threefry_partitionable(False):
        key, signs_key = jax.random.split(key)
        drawn = jax.random.normal(key, (ends[-1],), compute_dtype(like))
        numbers = drawn[None]
        if copies > 1:
            # Bit c of a random word is the sign in copy c.
            words = jax.random.bits(signs_key, drawn.shape, jnp.uint32)
            bits = (words >> jnp.arange(copies, dtype=jnp.uint32)[:, None]) & 1
            numbers = jnp.where(bits == 0, drawn, -drawn)
    return structure.unflatten(
        numbers[:, end - leaf.size : end]
        .reshape(copies, *leaf.shape)
        .astype(leaf.dtype)
        for end, leaf in zip(ends, leaves, strict=True)
    )


def varying(tree: PyTree, axis_name: str | None) -> PyTree:
    """The same numbers, as `jax.shard_map` wants what will differ over the axis."""
    if axis_name is None:
        return tree
    nothing = 0 * jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), tree)


def translate(params: PyTree, displacement: PyTree) -> PyTree:
    """x + u, added in at least float32 and returned in the dtypes of x."""
    return jax.tree.map(
        lambda x, u: (x.astype(u.dtype) + u).astype(x.dtype), params, displacement
    )


def scaled(tree: PyTree, factor: Any) -> PyTree:
    """`factor * tree`, each leaf in its own dtype."""
    return jax.tree.map(lambda leaf: leaf * jnp.asarray(factor, leaf.dtype), tree)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether no leaf has a NaN or an infinity."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def inner(a: PyTree, b: PyTree, dtype: Any) -> jax.Array:
    """Σ a·b over all leaves, which may differ in width."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y).astype(dtype), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros((), dtype))
