"""Arithmetic of parameter trees in explicit dtypes; the rest is `optax.tree`."""

from __future__ import annotations

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
