"""Arithmetic of parameter trees in explicit dtypes; the rest is `optax.tree`."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lejax._internal.types import PyTree, Scalar

# A tree with at most this many entries is drawn as one flat vector.
POOLED_NUMBERS = 2**22


def _at_least_float32(dtype: Any) -> Any:
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def compute_dtype(tree: PyTree) -> Any:
    """The dtype of losses, weights and sums: the widest leaf's, at least float32."""
    dtypes = [_at_least_float32(leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def widen(tree: PyTree) -> PyTree:
    """`tree` with leaves of at least float32: half precision loses small steps."""
    return jax.tree.map(lambda leaf: leaf.astype(_at_least_float32(leaf.dtype)), tree)


def of_strong_types(tree: PyTree) -> PyTree:
    """`tree` as strongly typed arrays, which the sum of two arrays is as well."""

    def strong(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not getattr(leaf, "weak_type", False):
            return leaf
        return jax.lax.convert_element_type(leaf, jnp.result_type(leaf))

    return jax.tree.map(strong, tree)


def is_large(tree: PyTree) -> bool:
    """Whether a tree is so large that its leaves are drawn and sharded one by one."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree)) > POOLED_NUMBERS


def laid_out_as(like: jax.Array, numbers: jax.Array) -> jax.Array:
    """`numbers`, sharded as `like`, which has the same shape.

    An operation on both makes the compiler give them the same layout, before it removes
    the factor 1.
    """
    one = ((like == like) | True).astype(numbers.dtype)
    return numbers * one


def scaled(tree: PyTree, factor: Scalar) -> PyTree:
    """`factor * tree`, each leaf in its own dtype."""
    return jax.tree.map(lambda leaf: leaf * jnp.asarray(factor, leaf.dtype), tree)


def signed(tree: PyTree, sign: Any) -> PyTree:
    """`sign * tree`; None means 1."""
    return tree if sign is None else scaled(tree, sign)


def zero_after(tree: PyTree) -> jax.Array:
    """Zero, computed from the first leaf in a way that no compiler simplifies.

    Adding it to an operand makes an operation wait for the leaf.
    """
    summed = jax.tree.leaves(tree)[0].sum()
    return 0 * jnp.where(jnp.isfinite(summed), jnp.sign(summed), 0)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether all entries of all leaves are finite."""
    largest: dict[Any, jax.Array] = {}
    # One pass for all leaves of a shape: a maximum with NaN is NaN.
    for leaf in jax.tree.leaves(tree):
        kind, size = (leaf.shape, leaf.dtype), jnp.abs(leaf)
        largest[kind] = jnp.maximum(largest[kind], size) if kind in largest else size
    found = [jnp.isfinite(size.max(initial=0)) for size in largest.values()]
    return functools.reduce(jnp.logical_and, found)


def inner(a: PyTree, b: PyTree, dtype: Any) -> jax.Array:
    """Σ a·b over all leaves, which may differ in dtype."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y).astype(dtype), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros((), dtype))


def rows(tree: PyTree) -> jax.Array:
    """Leaves (n, ...) as one matrix (n, d)."""
    leaves = jax.tree.leaves(tree)
    dtype = compute_dtype(tree)
    return jnp.concatenate(
        [leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in leaves], 1
    ).astype(dtype)
