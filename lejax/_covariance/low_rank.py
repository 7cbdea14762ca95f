"""A covariance of low rank plus diagonal, in O(dr) numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from lejax._internal.trees import rows
from lejax._internal.types import PyTree

# The eigenvalues Λ stay between this and its inverse.
LEAST = 1e-6

# Changes stay this much within their limits, so that rounding cannot exceed them.
SLACK = 1e-3

# The limits of a change are reduced by powers of at least about this.
LEAST_POWER = 0.1


class LowRank(NamedTuple):
    """Σ = S (I + U(Λ - I)Uᵀ) S; all arrays are flat, in the order of `ravel_pytree`.

    L = SR with R = I + U(√Λ - I)Uᵀ. An update is one step of principal factors. Let B
    be the matrix that S⁻¹ΣS⁻¹ should become. Only its diagonal and BΩ are estimated,
    with the r columns of Ω, which turn towards the directions of BΩ - Ω: a power
    iteration along the updates. It finds wide directions first; with narrow ones it may
    stop at a local optimum.

    Attributes:
        scales: S, (d,).
        basis: U, (d, r), orthonormal.
        values: Λ, (r,).
        sketch: Ω, (d, r), orthonormal: the directions that the next update measures.
    """

    scales: jax.Array
    basis: jax.Array
    values: jax.Array
    sketch: jax.Array

    def turned(self, u: jax.Array, power: float) -> jax.Array:
        """(I + U(Λ - I)Uᵀ)ᵖ u, for one u or for rows."""
        return u + ((u @ self.basis) * (self.values**power - 1)) @ self.basis.T

    def times(self, u: PyTree) -> PyTree:
        """Lu."""
        flat, unravel = ravel_pytree(u)
        return unravel(self.scales * self.turned(flat, 0.5))

    def variances(self, like: PyTree) -> PyTree:
        """The diagonal of Σ, in the shapes of the parameters."""
        ones = 1 + self.basis**2 @ (self.values - 1)
        return ravel_pytree(like)[1](self.scales**2 * ones)

    def log_determinant(self, like: PyTree) -> jax.Array:
        """log det L."""
        del like
        return jnp.log(self.scales).sum() + jnp.log(self.values).sum() / 2

    def products(
        self, u: PyTree, v: PyTree, coefficients: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The diagonal of RMR, and RMRΩ, for M = Σ c (uvᵀ + vuᵀ)/2."""
        return self._sums(u, v, coefficients, 0.5)

    def bends(
        self, u: PyTree, v: PyTree, coefficients: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The same for R⁻¹MR⁻¹."""
        return self._sums(u, v, coefficients, -0.5)

    def _sums(
        self, u: PyTree, v: PyTree, coefficients: jax.Array, power: float
    ) -> tuple[jax.Array, jax.Array]:
        a, b = (self.turned(rows(tree), power) for tree in (u, v))
        c = coefficients.astype(a.dtype)
        one, other = (
            a.T @ (c[:, None] * (b @ self.sketch)),
            b.T @ (c[:, None] * (a @ self.sketch)),
        )
        return c @ (a * b), (one + other) / 2

    def unit(self, power: int = 1) -> tuple[jax.Array, jax.Array]:
        """I, in the form of `products`, or with power -1 of `bends`."""
        values = self.values**power - 1
        known = self.basis @ (values[:, None] * (self.basis.T @ self.sketch))
        return 1 + self.basis**2 @ values, self.sketch + known

    def factor(self, excess: Any, low: Any, high: Any) -> Any:
        """A and the limits of I + A, for `solve` and `stretched`."""
        return excess, low * (1 + 2 * SLACK), high * (1 - 2 * SLACK)

    def solve(self, factor: Any, u: PyTree) -> PyTree:
        """(I + A)⁻¹u, computed as R⁻¹B⁻¹R⁻¹u from the precision."""
        flat, unravel = ravel_pytree(u)
        scales = 1 / self.scales
        found = self._of(-1, factor)
        inside = self.turned(flat, -0.5) * scales / found.scales
        inside = found.turned(inside, -1.0) * scales / found.scales
        return unravel(self.turned(inside, -0.5))

    def stretched(
        self, factor: Any, power: int, bounds: tuple[Any, Any]
    ) -> tuple[LowRank, jax.Array]:
        """The root of L(I + A)ᵖLᵀ within bounds, and the share of scales at a bound.

        The known parts of A may add up to a covariance too far from this one. Then each
        part of Σ changes by less, or, if Ω is too far from U, all of Σ is rescaled.
        """
        excess, least, most = factor

        def learnt(part: jax.Array) -> tuple[Any, ...]:
            own = excess, least**part, most**part
            kept, bounded = self._of(power, own)._bounded(power, bounds)
            return part, kept, bounded, kept.is_near(self, most)

        _, kept, bounded, near = jax.lax.while_loop(
            lambda state: (state[0] > LEAST_POWER) & ~state[3],
            lambda state: learnt(state[0] / 2),
            learnt(jnp.ones((), self.scales.dtype)),
        )
        change = 1 + (excess[0] / self.unit(power)[0]).mean()
        size = jnp.sqrt(change.clip(least, most) ** power)
        low, high = (jnp.sqrt(bound) for bound in bounds)
        resized = self._replace(
            scales=(self.scales * size).clip(low, high), sketch=kept.sketch
        )
        return optax.tree.where(near, kept, resized), bounded

    def _bounded(
        self, power: int, bounds: tuple[Any, Any]
    ) -> tuple[LowRank, jax.Array]:
        """Σ within bounds, if this is Σᵖ, and the share of scales at a bound."""
        low, high = bounds
        free = self.scales**power
        scales = free.clip(jnp.sqrt(low), jnp.sqrt(high))
        # Orthogonal to U the variances are those of S, which are within the bounds.
        values = (self.values**power).clip(
            jnp.minimum(low / scales.min() ** 2, 1),
            jnp.maximum(high / scales.max() ** 2, 1),
        )
        kept = self._replace(scales=scales, values=values)
        return kept, (free != scales).mean(dtype=scales.dtype)

    def is_near(self, other: LowRank, change: Any) -> jax.Array:
        """Whether in every direction the variances differ by at most a factor."""
        change = change * (1 + SLACK)
        return self._is_below(other, change) & other._is_below(self, change)

    def _is_below(self, other: LowRank, change: Any) -> jax.Array:
        """Whether Σ is at most `change` times the other in every direction."""
        # The difference is low rank plus diagonal too, so a small matrix decides.
        rest = change * other.scales**2 - self.scales**2
        apart = jnp.sqrt(jnp.where(rest > 0, rest, 1))[:, None]
        columns = jnp.concatenate(
            [one.scales[:, None] * one.basis / apart for one in (self, other)], 1
        )
        excess = jnp.concatenate([self.values - 1, -change * (other.values - 1)])
        triangle = jnp.linalg.qr(columns, mode="r")
        inside = jnp.linalg.eigvalsh((triangle * excess) @ triangle.T)
        return (rest > 0).all() & (inside.max() <= 1)

    def _of(self, power: int, factor: Any) -> LowRank:
        """The next Σᵖ, of SᵖBSᵖ with B = Rᵖ(I + A)Rᵖ."""
        (diagonal, columns), low, high = factor
        ones, before = self.unit(power)
        diagonal, columns = ones + diagonal, before + columns
        # The eigenvalues and eigenvectors of B on the span of Ω.
        inside = self.sketch.T @ columns
        found, turn = jnp.linalg.eigh((inside + inside.T) / 2)
        old = jnp.einsum("ij,ij->j", self.sketch @ turn, before @ turn)
        found = found.clip(low * old, high * old)
        directions = self.sketch @ turn
        # The rest of the diagonal is the new S², in units of the old.
        rest = (diagonal - directions**2 @ (found - 1)).clip(low, high)
        scale = jnp.sqrt(rest)[:, None]
        basis, triangle = jnp.linalg.qr(directions / scale)
        excess, turn = jnp.linalg.eigh((triangle * (found - 1)) @ triangle.T)
        basis = basis @ turn
        # The old variances in the new directions.
        y = basis / scale
        across = self.values**power - 1
        old = (y**2).sum(0) + across @ (self.basis.T @ y) ** 2
        sketch = jnp.linalg.qr((columns - rest[:, None] * self.sketch) / scale)[0]
        return LowRank(
            self.scales**power * scale[:, 0],
            basis,
            (1 + excess).clip(low * old, high * old).clip(LEAST, 1 / LEAST),
            sketch,
        )


def isotropic_low_rank(
    zeros: PyTree, scale: jax.Array, rank: int, key: jax.Array
) -> LowRank:
    """σ²I, with random directions for the first update to measure."""
    flat = ravel_pytree(zeros)[0]
    if rank > flat.size:
        raise ValueError(
            f"rank must be at most the number of parameters, {flat.size}, got {rank}; "
            "lower it, or pass covariance='full'."
        )
    noise = jax.random.normal(key, (flat.size, rank), flat.dtype)
    sketch = jnp.linalg.qr(noise)[0]
    ones = jnp.ones(rank, flat.dtype)
    return LowRank(jnp.full_like(flat, scale), sketch, ones, sketch)
