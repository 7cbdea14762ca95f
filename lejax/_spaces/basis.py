"""An orthonormal basis of the span of known rows, and the rows in its coordinates."""

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
        columns: Q; if its columns are columns of the identity, their indices (m,).
        valid: (m,), False for padding, a direction that is never drawn; None if no
            column is padding.
    """

    columns: jax.Array
    valid: jax.Array | None

    def mask(self, u: jax.Array) -> jax.Array:
        """`u` (m, ...) with 0 for the padding."""
        if self.valid is None:
            return u
        return jnp.where(self.valid.reshape(-1, *(1,) * (u.ndim - 1)), u, 0)

    def lift(self, u: jax.Array, size: int) -> jax.Array:
        """Q u, (n, ...), for n = `size`."""
        if self.columns.ndim == 1:
            zeros = jnp.zeros((size, *u.shape[1:]), u.dtype)
            return zeros.at[self.columns].add(self.mask(u), mode="drop")
        return jnp.tensordot(self.columns, u, 1, precision=_EXACT)

    def lower(self, w: jax.Array) -> jax.Array:
        """Qᵀ w, (m, ...)."""
        if self.columns.ndim == 1:
            return w.at[self.columns].get(mode="fill", fill_value=0)
        return jnp.tensordot(self.columns.T, w, 1, precision=_EXACT)


def basis_of_rows(
    row_values: RowValues, size: int, dtype: Any, data_axis_name: str | None
) -> tuple[Basis, RowValues]:
    """A basis Q of the rows A of all sources, and A Q (*free, m) for each source.

    A displacement u in this basis changes A W by (A Q) u. Q spans the rows of all
    members of the data axis.
    """
    stacked = jnp.concatenate(
        [jnp.zeros((0, size), dtype)]
        + [rows.reshape(-1, size).astype(dtype) for rows in row_values.values()]
    )
    # A row that is not finite would make Q NaN, so it is left out. Its coefficients are
    # NaN instead, which fails the samples that use it.
    finite = jnp.isfinite(stacked).all(1)
    rows = jnp.where(finite[:, None], stacked, 0)
    # One source at a time: the rows then have the order of the whole batch, and Q is
    # the same as on one device.
    of_all_members = jnp.concatenate(
        [jnp.zeros((0, size), dtype)]
        + [
            gathered(part, data_axis_name).reshape(-1, size)
            for part in _split_by_source(rows, row_values).values()
        ]
    )
    # The Q of the QR decomposition is orthonormal for any rank of A. Derivatives with
    # respect to the rows hold it fixed.
    q = jax.lax.stop_gradient(jnp.linalg.qr(of_all_members.T)[0])
    products = jnp.matmul(rows, q, precision=_EXACT)
    coefficients = jnp.where(finite[:, None], products, jnp.nan)
    return Basis(q, None), _split_by_source(coefficients, row_values)


def basis_of_gathers(
    row_values: RowValues, size: int, data_axis_name: str | None
) -> tuple[Basis, RowValues]:
    """The rows of the table that are read, and for each source their places among them.

    Each row is listed once. The rows that any member of the data axis reads count.
    """
    stacked = jnp.concatenate([rows.ravel() for rows in row_values.values()])
    of_all_members = gathered(stacked, data_axis_name)
    columns, places = jnp.unique(
        of_all_members, size=of_all_members.size, fill_value=size, return_inverse=True
    )
    place = places.reshape(of_all_members.shape)[member(data_axis_name)]
    place = jnp.where(stacked < size, place, of_all_members.size)
    return Basis(columns, columns < size), _split_by_source(place, row_values)


def _split_by_source(stacked: jax.Array, row_values: RowValues) -> RowValues:
    """`stacked` (rows, ...), split into the parts of the sources."""
    parts, first = {}, 0
    for source, rows in row_values.items():
        free = source.free_shape(rows)
        stop = first + math.prod(free)
        parts[source] = stacked[first:stop].reshape(free + stacked.shape[1:])
        first = stop
    return parts


def apply_rows(coefficients: jax.Array, u: jax.Array) -> jax.Array:
    """(A Q) u, or for integer `coefficients` the rows of u at these: (*free, ...)."""
    if jnp.issubdtype(coefficients.dtype, jnp.integer):
        return u.at[coefficients].get(mode="fill", fill_value=0)
    return jnp.tensordot(coefficients, u, 1, precision=_EXACT)
