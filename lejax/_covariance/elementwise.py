"""Covariances with one variance for each leaf, or for each parameter."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._internal.trees import compute_dtype
from lejax._internal.types import PyTree


class Elementwise(NamedTuple):
    """L is diagonal, with one scale for each leaf or for each of its numbers.

    Attributes:
        scales: standard deviations, scalars or in the shapes of the parameters.
    """

    scales: PyTree

    def times(self, u: PyTree) -> PyTree:
        """Lu."""
        return jax.tree.map(jnp.multiply, self.scales, u)

    def variances(self, like: PyTree) -> PyTree:
        """The diagonal of Σ, in the shapes of the parameters."""
        return jax.tree.map(
            lambda scale, leaf: jnp.broadcast_to(scale**2, leaf.shape),
            self.scales,
            like,
        )

    def log_determinant(self, like: PyTree) -> jax.Array:
        """log det L."""
        logs = jax.tree.map(
            lambda scale, leaf: jnp.log(scale).sum() * (leaf.size / max(scale.size, 1)),
            self.scales,
            like,
        )
        return sum(jax.tree.leaves(logs), jnp.zeros((), compute_dtype(like)))

    def products(self, u: PyTree, v: PyTree, coefficients: jax.Array) -> PyTree:
        """The diagonal of Σ c uvᵀ, or its mean over a leaf.

        `u` and `v` have leaves (n, ...), `coefficients` has the shape (n,).
        """

        def of_leaf(scale: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
            found = u * v
            if not scale.ndim and found.ndim > 1:
                size = max(math.prod(found.shape[1:]), 1)
                found = found.sum(tuple(range(1, found.ndim))) / size
            return jnp.tensordot(coefficients.astype(found.dtype), found, 1)

        return jax.tree.map(of_leaf, self.scales, u, v)

    bends = products

    def unit(self) -> PyTree:
        """I, in the form of `products`."""
        return jax.tree.map(jnp.ones_like, self.scales)

    def factor(self, excess: PyTree, low: Any, high: Any) -> PyTree:
        """I + A, clipped to [low, high], for A in the form of `products`."""
        return jax.tree.map(lambda a: _clipped(1 + a, low, high), excess)

    def solve(self, factor: PyTree, u: PyTree) -> PyTree:
        """F⁻¹u."""
        return jax.tree.map(jnp.divide, u, factor)

    def stretched(
        self, factor: PyTree, power: int, bounds: tuple[Any, Any]
    ) -> tuple[Elementwise, jax.Array]:
        """The root of LFᵖLᵀ within bounds, and the share of directions at a bound."""
        low, high = (jnp.sqrt(bound) for bound in bounds)
        free = jax.tree.map(lambda s, f: s * f ** (power / 2), self.scales, factor)
        kept = jax.tree.map(lambda s: _clipped(s, low, high), free)
        changed = jax.tree.map(lambda a, b: (a != b).sum(), free, kept)
        size = max(optax.tree.size(kept), 1)
        return Elementwise(kept), jnp.asarray(optax.tree.sum(changed)) / size


def _clipped(x: jax.Array, low: Any, high: Any) -> jax.Array:
    """x within bounds, in its own dtype."""
    return x.clip(*(jnp.asarray(end, x.dtype) for end in (low, high)))
