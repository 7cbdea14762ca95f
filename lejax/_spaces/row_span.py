"""The layers of a program as matrices, and what every example sees of their noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._tracing.layers import FEW_POSITIONS, PerExampleLayer
from lejax._tracing.program import Program


class RowBasis(NamedTuple):
    """Rows that span what the examples see of a layer; orthogonal in every example.

    Attributes:
        rows: (..., B, T, n).
        ones: what the bias is multiplied with, (..., B, T).
        squares: the square of the norm of each, (..., B), but for those that are 0.
        finite: whether they are, (..., B); where not, that is the earlier noise's
            doing: no credit at all, and 0 stands for them.
        root: the R, (..., B, T, T), with Hᵢ = Rᵀ times the rows; None of single rows.
    """

    rows: jax.Array
    ones: jax.Array
    squares: jax.Array
    finite: jax.Array
    root: jax.Array | None


class MatrixLayer(NamedTuple):
    """A layer of which each example sees its own part.

    Attributes:
        leaves: the places of its kernel and, if it has one, of its bias.
        known: what spans the Hᵢ, where these are the same at every point, else None.
        span: what spans them, of the layer's inputs.
        matrix: a displacement of the kernel as a matrix (n, o).
        vector: one of the bias as a vector (o,).
        zeros: what is seen of no displacement, (B, T, o).
    """

    leaves: tuple[int, ...]
    known: RowBasis | None
    span: Callable[[jax.Array], RowBasis]
    matrix: Callable[[jax.Array], jax.Array]
    vector: Callable[[jax.Array], jax.Array]
    zeros: jax.Array


def matrix_layer(
    sight: PerExampleLayer,
    program: Program,
    known: dict[int, Any],
    coefficients: jax.Array | None = None,
) -> MatrixLayer:
    """The layer of a sight, of which the values of `known` are the same at all points.

    `coefficients` are those of the rows (*free, m) where the kernel is drawn in their
    directions.
    """
    shape = program.shapes[sight.result].shape
    dtype = program.shapes[sight.result].dtype
    rows_shape = tuple(shape[axis] for axis in sight.result_order)
    ahead = len(rows_shape) - sight.others
    examples, features = rows_shape[0], math.prod(rows_shape[ahead:])
    order = sight.kernel_order
    if coefficients is not None:
        # A displacement is (m, *the other axes as they are in the leaf).
        others = order[len(order) - sight.others :]
        order = (0, *(1 + sorted(others).index(axis) for axis in others))

    def matrix(kernel: jax.Array) -> jax.Array:
        return jnp.transpose(kernel, order).reshape(-1, features)

    def vector(bias: jax.Array) -> jax.Array:
        for view in sight.bias_views:
            (bias,) = view.bind(bias)
        spread = jnp.transpose(bias, sight.result_order)
        return spread[(0,) * ahead].reshape(features)

    def span(inputs: jax.Array) -> RowBasis:
        return row_basis(sight.rows(inputs), has_bias=sight.bias is not None)

    at_all_points = None
    if coefficients is not None:
        places = sight.inputs_order[:ahead]
        free = sorted(places)
        rows = jnp.transpose(coefficients, (*map(free.index, places), len(free)))
        rows = rows.reshape(examples, sight.positions, -1)
        at_all_points = row_basis(rows, has_bias=sight.bias is not None)
    elif sight.inputs in known:
        at_all_points = span(known[sight.inputs])
    leaves = (sight.kernel,) if sight.bias is None else (sight.kernel, sight.bias)
    zeros = jnp.zeros((examples, sight.positions, features), dtype)
    return MatrixLayer(leaves, at_all_points, span, matrix, vector, zeros)


def row_basis(rows: jax.Array, *, has_bias: bool) -> RowBasis:
    """What spans the rows (..., B, T, n), where a bias is one more number, 1, of each.

    A single row as it is; of several an orthonormal basis, with 0 for what is not
    needed.
    """
    squares = jnp.square(rows).sum((-2, -1)) + int(has_bias)
    finite = jnp.isfinite(squares)
    rows = jnp.where(finite[..., None, None], rows, 0)
    ones = jnp.ones_like(rows[..., :1])
    if rows.shape[-2] == 1:
        return RowBasis(rows, ones[..., 0], squares, finite, None)
    whole = jnp.concatenate([rows, ones], -1) if has_bias else rows
    basis = _orthonormal(whole)
    root = jnp.einsum("...sn,...tn->...st", basis, whole)
    rows, ones = basis[..., : rows.shape[-1]], basis[..., -1]
    return RowBasis(rows, ones, jnp.ones_like(squares), finite, root)


def products_of_noise(met: RowBasis, noise: jax.Array) -> jax.Array:
    """What the examples see of a kernel whose part in their span is this noise.

    It is Rᵀ u, (B, T, o), where Hᵢ is Rᵀ times the orthonormal rows of the span.
    """
    if met.root is None:
        return jnp.sqrt(met.squares).astype(noise.dtype)[..., None, None] * noise
    return jnp.einsum("...st,...so->...to", met.root.astype(noise.dtype), noise)


def _orthonormal(rows: jax.Array) -> jax.Array:
    """The rows (..., T, n) made orthonormal, by Gram and Schmidt, each of them twice.

    What lies in the span of those before, to rounding, becomes 0. It is for many small
    matrices: `jnp.linalg.qr` takes them one by one, and several such calls in a program
    stop each other for ever on a CPU, in jax 0.10.
    """
    limit = 10 * jnp.finfo(rows.dtype).eps
    count = rows.shape[-2]

    def without(left: jax.Array, unit: jax.Array) -> jax.Array:
        return left - (unit * left).sum(-1, keepdims=True) * unit

    def unit_of(row: jax.Array, left: jax.Array) -> jax.Array:
        whole, rest = (jnp.square(x).sum(-1, keepdims=True) for x in (row, left))
        kept = rest > limit**2 * whole
        return jnp.where(kept, left / jnp.sqrt(jnp.where(kept, rest, 1)), 0)

    if count <= FEW_POSITIONS:  # a loop that the compiler sees through
        basis: list[jax.Array] = []
        for t in range(count):
            row = rows[..., t, :]
            basis.append(unit_of(row, functools.reduce(without, 2 * basis, row)))
        return jnp.stack(basis, -2)

    def with_row(t: jax.Array, basis: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_index_in_dim(rows, t, -2, keepdims=False)

        def without_next(s: jax.Array, left: jax.Array) -> jax.Array:
            unit = jax.lax.dynamic_index_in_dim(basis, s % t, -2, keepdims=False)
            return without(left, unit)

        left = jax.lax.fori_loop(0, 2 * t, without_next, row)
        return jax.lax.dynamic_update_index_in_dim(basis, unit_of(row, left), t, -2)

    return jax.lax.fori_loop(0, count, with_row, jnp.zeros_like(rows))


def of_sign(span: RowBasis, k: int) -> RowBasis:
    """What was met under one of the signs, of a span for each."""
    return jax.tree.map(lambda leaf: leaf[k], span)


def weights(met: RowBasis, losses: jax.Array) -> jax.Array:
    """Losses (..., B) by the square of the norm of the rows."""
    return losses / jnp.where(met.squares > 0, met.squares, 1).astype(losses.dtype)


def plus(total: jax.Array | None, part: jax.Array) -> jax.Array:
    """The sum, of which nothing may be there yet."""
    return part if total is None else total + part


def transposed(
    layer: MatrixLayer, met: RowBasis, weighted: jax.Array, point: tuple[Any, ...]
) -> list[jax.Array]:
    """Σ Hᵢᵀvᵢ over the examples, and over the draws where these have their own rows.

    `weighted` are the vᵢ, (..., B, T, o); `point` says of which type the leaves are.
    """
    rows = met.rows.reshape(-1, met.rows.shape[-1])
    kernel = rows.T @ weighted.reshape(-1, weighted.shape[-1])
    found = [_back(layer.matrix, point[0], kernel)]
    for leaf in point[1:]:
        ones = met.ones[..., None] * weighted
        found.append(_back(layer.vector, leaf, ones.reshape(-1, ones.shape[-1]).sum(0)))
    return found


def _back(show: Callable[..., jax.Array], leaf: jax.Array, as_shown: Any) -> jax.Array:
    """The leaf that is shown so."""
    # It varies over the axes over which that varies; it is but a type.
    leaf = leaf + 0 * as_shown.ravel()[0].astype(leaf.dtype)
    shown = jax.eval_shape(show, leaf)
    (found,) = jax.linear_transpose(show, leaf)(as_shown.astype(shown.dtype))
    return found
