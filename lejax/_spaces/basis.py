"""Orthonormal directions that hold known rows, and the rows seen in them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._internal.mesh_axes import gathered, member
from lejax._tracing.known_rows import RowValues

_EXACT = jax.lax.Precision.HIGHEST


class Basis(NamedTuple):
    """Orthonormal directions of a leaf: the columns of Q (n, m).

    Attributes:
        basis: Q; or the numbers (m,) of rows, where its columns are of the identity.
        seen: (m,), False for a direction that only fills up the number m, and is never
            drawn; None where all are seen.
    """

    basis: jax.Array
    seen: jax.Array | None

    def mask(self, u: jax.Array) -> jax.Array:
        """`u` (m, ...) in the directions that are seen."""
        if self.seen is None:
            return u
        return jnp.where(self.seen.reshape(-1, *(1,) * (u.ndim - 1)), u, 0)

    def lift(self, u: jax.Array, rows: int) -> jax.Array:
        """Q u, (n, ...)."""
        if self.basis.ndim == 1:
            empty = jnp.zeros((rows, *u.shape[1:]), u.dtype)
            return empty.at[self.basis].add(self.mask(u), mode="drop")
        return jnp.tensordot(self.basis, u, 1, precision=_EXACT)

    def lower(self, w: jax.Array) -> jax.Array:
        """Qᵀ w, (m, ...)."""
        if self.basis.ndim == 1:
            return w.at[self.basis].get(mode="fill", fill_value=0)
        return jnp.tensordot(self.basis.T, w, 1, precision=_EXACT)


def basis_of_rows(
    factors: RowValues, size: int, dtype: Any, data_axis_name: str | None
) -> tuple[Basis, RowValues]:
    """The directions of rows A; and A Q, (*free, m) for a factor: A W is (A Q) U.

    The directions are those of the rows of all members of the axis of the data.
    """
    stacked = jnp.concatenate(
        [jnp.zeros((0, size), dtype)]
        + [rows.reshape(-1, size).astype(dtype) for rows in factors.values()]
    )
    # A row that is not finite would poison Q, so it has no direction. Its product is
    # NaN instead: a sample that meets it fails.
    finite = jnp.isfinite(stacked).all(1)
    rows = jnp.where(finite[:, None], stacked, 0)
    # Householder's Q is orthonormal whatever the rank of A, and no more is needed.
    # It is held fixed where somebody differentiates with respect to the rows.
    # Factor by factor: in the order of the whole batch, and so the same directions.
    of_all = jnp.concatenate(
        [jnp.zeros((0, size), dtype)]
        + [
            gathered(part, data_axis_name).reshape(-1, size)
            for part in _unstacked(rows, factors).values()
        ]
    )
    q = jax.lax.stop_gradient(jnp.linalg.qr(of_all.T)[0])
    met = jnp.matmul(rows, q, precision=_EXACT)
    coefficients = jnp.where(finite[:, None], met, jnp.nan)
    return Basis(q, None), _unstacked(coefficients, factors)


def basis_of_gathers(
    factors: RowValues, size: int, data_axis_name: str | None
) -> tuple[Basis, RowValues]:
    """The rows that are read, each once, and for every factor which they are.

    They are those that any member of the axis of the data reads.
    """
    stacked = jnp.concatenate([rows.ravel() for rows in factors.values()])
    of_all = gathered(stacked, data_axis_name)
    basis, places = jnp.unique(
        of_all, size=of_all.size, fill_value=size, return_inverse=True
    )
    place = places.reshape(of_all.shape)[member(data_axis_name)]
    place = jnp.where(stacked < size, place, of_all.size)
    return Basis(basis, basis < size), _unstacked(place, factors)


def _unstacked(stacked: jax.Array, factors: RowValues) -> RowValues:
    """`stacked` (rows, ...), cut where the factors were joined."""
    found, first = {}, 0
    for factor, rows in factors.items():
        free = factor.free_shape(rows)
        stop = first + math.prod(free)
        found[factor] = stacked[first:stop].reshape(free + stacked.shape[1:])
        first = stop
    return found


def apply_rows(coefficient: jax.Array, u: jax.Array) -> jax.Array:
    """The rows' product with, or choice from, the displacement u: (*free, ...)."""
    if jnp.issubdtype(coefficient.dtype, jnp.integer):
        return u.at[coefficient].get(mode="fill", fill_value=0)
    return jnp.tensordot(coefficient, u, 1, precision=_EXACT)
