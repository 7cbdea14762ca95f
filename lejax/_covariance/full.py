"""A dense covariance of all parameters."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lejax._internal.trees import rows
from lejax._internal.types import PyTree

# Above this size a decomposition takes minutes.
MAX_DENSE_SIZE = 2**11


# Full precision also on devices that round products by default.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Full(NamedTuple):
    """L is dense.

    Attributes:
        root: (d, d), symmetric, in the order of `ravel_pytree`.
    """

    root: jax.Array

    def times(self, u: PyTree) -> PyTree:
        """Lu."""
        flat, unravel = ravel_pytree(u)
        return unravel(_matmul(self.root, flat))

    def variances(self, like: PyTree) -> PyTree:
        """The diagonal of Σ, in the shapes of the parameters."""
        unravel = ravel_pytree(like)[1]
        return unravel((self.root**2).sum(1))

    def log_determinant(self, like: PyTree) -> jax.Array:
        """log |det L|."""
        del like
        return jnp.linalg.slogdet(self.root)[1]

    def products(self, u: PyTree, v: PyTree, coefficients: jax.Array) -> jax.Array:
        """Σ c (uvᵀ + vuᵀ)/2, for leaves (n, ...) and coefficients (n,)."""
        u, v = rows(u), rows(v)
        found = _matmul((u * coefficients[:, None].astype(u.dtype)).T, v)
        return (found + found.T) / 2

    bends = products

    def unit(self) -> jax.Array:
        """I, in the form of `products`."""
        return jnp.eye(len(self.root), dtype=self.root.dtype)

    def factor(self, excess: jax.Array, low: Any, high: Any) -> Any:
        """The eigenvalues of I + A, clipped to [low, high], and its eigenvectors."""
        values, vectors = jnp.linalg.eigh(excess)
        return (1 + values).clip(low, high), vectors

    def solve(self, factor: Any, u: PyTree) -> PyTree:
        """F⁻¹u."""
        values, vectors = factor
        flat, unravel = ravel_pytree(u)
        return unravel(_matmul(vectors, _matmul(vectors.T, flat) / values))

    def stretched(
        self, factor: Any, power: int, bounds: tuple[Any, Any]
    ) -> tuple[Full, jax.Array]:
        """The root of LFᵖLᵀ within bounds, and the share of directions at a bound."""
        values, vectors = factor
        # From the root, as Σ would lose half of the digits of small eigenvalues.
        root = _matmul(self.root, vectors * values ** (power / 2))
        directions, free, _ = jnp.linalg.svd(root)
        kept = free.clip(*(jnp.sqrt(bound) for bound in bounds))
        # The symmetric root is unique, so rounding cannot rotate it, nor the draws.
        root = _matmul(directions * kept, directions.T)
        return Full(root), (kept != free).mean(dtype=root.dtype)
