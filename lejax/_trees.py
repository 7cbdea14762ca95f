"""Arithmetic of parameter trees in explicit dtypes; the rest is `optax.tree`."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

PyTree: TypeAlias = Any


def compute_dtype(tree: PyTree) -> Any:
    """The dtype of losses, weights and sums: float32, or the widest leaf's if wider."""
    return jnp.promote_types(
        jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(tree))), jnp.float32
    )


def widen(tree: PyTree) -> PyTree:
    """`tree` with leaves of at least float32: half precision loses small steps."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), tree
    )


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
