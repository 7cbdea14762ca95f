"""The covariance Σ = LLᵀ of φ = N(x, Σ), by its root L: x + Lu with u ~ N(0, I).

All that is learnt about Σ is learnt in the coordinates u, where it is I.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from lejax._low_rank import LowRank, isotropic_low_rank
from lejax._trees import PyTree, compute_dtype, rows

Structure = Literal["scale", "diagonal", "low_rank", "full"]

# A dense root of more directions takes minutes to decompose.
MOST_DIRECTIONS = 2**11


# Also where the device would rather round.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Elementwise(NamedTuple):
    """L is diagonal, with one scale for a leaf, or one for each of its numbers.

    Attributes:
        scales: of standard deviations, scalars or of the shapes of the parameters.
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
        """Σ c uvᵀ as far as it is kept: its diagonal, or the mean of that of a leaf.

        `u` and `v` have leaves (n, ...), for coefficients (n,).
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
        """I as `products` has it."""
        return jax.tree.map(jnp.ones_like, self.scales)

    def factor(self, excess: PyTree, low: Any, high: Any) -> PyTree:
        """I + A, with eigenvalues between these, for A as `products` has it."""
        return jax.tree.map(lambda a: _clipped(1 + a, low, high), excess)

    def solve(self, factor: PyTree, u: PyTree) -> PyTree:
        """F⁻¹u."""
        return jax.tree.map(jnp.divide, u, factor)

    def stretched(
        self, factor: PyTree, power: int, bounds: tuple[Any, Any]
    ) -> tuple[Elementwise, jax.Array]:
        """The root of LFᵖLᵀ within bounds, and the share of directions at one."""
        low, high = (jnp.sqrt(bound) for bound in bounds)
        free = jax.tree.map(lambda s, f: s * f ** (power / 2), self.scales, factor)
        kept = jax.tree.map(lambda s: _clipped(s, low, high), free)
        changed = jax.tree.map(lambda a, b: (a != b).sum(), free, kept)
        size = max(optax.tree.size(kept), 1)
        return Elementwise(kept), jnp.asarray(optax.tree.sum(changed)) / size


class Full(NamedTuple):
    """L is dense.

    Attributes:
        root: (d, d), symmetric, of all numbers of the parameters as `ravel_pytree` has
            them.
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
        """Σ c (uvᵀ + vuᵀ)/2, of leaves (n, ...), for coefficients (n,)."""
        u, v = rows(u), rows(v)
        found = _matmul((u * coefficients[:, None].astype(u.dtype)).T, v)
        return (found + found.T) / 2

    bends = products

    def unit(self) -> jax.Array:
        """I as `products` has it."""
        return jnp.eye(len(self.root), dtype=self.root.dtype)

    def factor(self, excess: jax.Array, low: Any, high: Any) -> Any:
        """I + A, with eigenvalues between these: they and their directions."""
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
        """The root of LFᵖLᵀ within bounds, and the share of directions at one."""
        values, vectors = factor
        # By the root, not by Σ: small eigenvalues would have half of the digits.
        root = _matmul(self.root, vectors * values ** (power / 2))
        directions, free, _ = jnp.linalg.svd(root)
        kept = free.clip(*(jnp.sqrt(bound) for bound in bounds))
        # The symmetric root is the only one of its kind: rounding cannot turn it, and
        # with it the draws.
        root = _matmul(directions * kept, directions.T)
        return Full(root), (kept != free).mean(dtype=root.dtype)


Covariance: TypeAlias = Elementwise | LowRank | Full
Products = Callable[[PyTree, PyTree, jax.Array], PyTree]


def isotropic(
    structure: Structure, zeros: PyTree, variance: Any, rank: int, key: jax.Array
) -> Covariance:
    """τI, from where a covariance of that structure sets out."""
    scale = jnp.sqrt(jnp.asarray(variance, compute_dtype(zeros)))
    if structure == "low_rank":
        return isotropic_low_rank(zeros, scale, rank, key)
    if structure == "full":
        flat = ravel_pytree(zeros)[0]
        if flat.size > MOST_DIRECTIONS:
            raise ValueError(
                f"covariance='full' keeps a matrix of {flat.size} rows, and at most "
                f"{MOST_DIRECTIONS} are supported; pass covariance='diagonal'."
            )
        return Full(scale.astype(flat.dtype) * jnp.eye(flat.size, dtype=flat.dtype))
    shapes = {"scale": lambda leaf: (), "diagonal": jnp.shape}
    return Elementwise(
        jax.tree.map(
            lambda leaf: jnp.full(shapes[structure](leaf), scale, leaf.dtype), zeros
        )
    )


def _clipped(x: jax.Array, low: Any, high: Any) -> jax.Array:
    """In the dtype of x."""
    return x.clip(*(jnp.asarray(end, x.dtype) for end in (low, high)))
