"""Sums of uvᵀ over the draws, as far as a covariance keeps them: its `products`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lejax._estimators.draws import Draws
from lejax._internal.trees import compute_dtype
from lejax._internal.types import PyTree
from lejax._spaces.space import Products


def no_products(products: Products | None, zeros: PyTree) -> PyTree:
    """The sum of none of them; None without."""
    if products is None:
        return None
    one = jax.tree.map(lambda leaf: leaf[None], zeros)
    return products(one, one, jnp.zeros(1, compute_dtype(zeros)))


def squares(products: Products | None, draws: Draws, coefficients: jax.Array) -> PyTree:
    """Σ c uuᵀ over all draws, for coefficients (k, p, g); None without products."""
    if products is None:
        return None
    each = jax.tree.map(_in_line, draws.displacements)
    return products(each, each, coefficients.sum(0).ravel())  # those of a pair alike


def slopes(products: Products, draws: Draws, kept: jax.Array, grads: PyTree) -> PyTree:
    """Σu∇fᵀ over the draws kept, (k, p, g), for leaves (k, p, g, ...) of ∇f."""
    ones = jnp.ones(kept[0].size)

    def signed(grad: jax.Array) -> jax.Array:
        # A pair's difference first: what both have in common leaves no rounding.
        mask = kept.reshape(kept.shape + (1,) * (grad.ndim - 3))
        signs = draws.signs.astype(grad.dtype)
        return jnp.tensordot(signs, jnp.where(mask, grad, 0), 1)

    displacements = jax.tree.map(_in_line, draws.displacements)
    differences = jax.tree.map(lambda grad: _in_line(signed(grad)), grads)
    return products(displacements, differences, ones)


def _in_line(leaf: jax.Array) -> jax.Array:
    """(p, g, ...) as (p·g, ...)."""
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])
