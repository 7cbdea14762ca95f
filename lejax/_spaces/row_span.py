"""The layers of a program as matrices, and bases of the rows of every example.

Example i depends on the noise ε of a layer only through Hᵢ ε, with its rows Hᵢ (T, n).
"""

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
    """For every example, orthogonal rows with the span of its rows Hᵢ.

    With a bias each row of Hᵢ has one more entry, 1.

    Attributes:
        rows: the orthogonal rows without the entry of the bias, (..., B, T, n).
        ones: the entry of the bias in each row, (..., B, T).
        squared_norms: the squared norm of each row that is not 0, (..., B).
        finite: whether Hᵢ is finite, (..., B). The noise of earlier layers can make it
            NaN or infinite; then the rows are 0, and the example has no credit.
        root: the R (..., B, T, T) with Hᵢ = Rᵀ times the rows; None for T = 1, as the
            rows then are the Hᵢ.
    """

    rows: jax.Array
    ones: jax.Array
    squared_norms: jax.Array
    finite: jax.Array
    root: jax.Array | None


class MatrixLayer(NamedTuple):
    """A layer as a product of rows (B, T, n) with a matrix (n, o).

    Attributes:
        leaves: the places of its kernel and of its bias, if it has one.
        fixed_basis: the basis of the rows, if no displacement changes them; else None.
        basis_of: the basis of the rows, as a function of the layer's inputs.
        matrix: maps a displacement of the kernel to the matrix (n, o).
        vector: maps a displacement of the bias to a vector (o,).
        zeros: the product with a displacement 0, (B, T, o).
    """

    leaves: tuple[int, ...]
    fixed_basis: RowBasis | None
    basis_of: Callable[[jax.Array], RowBasis]
    matrix: Callable[[jax.Array], jax.Array]
    vector: Callable[[jax.Array], jax.Array]
    zeros: jax.Array


def make_matrix_layer(
    layer: PerExampleLayer,
    program: Program,
    fixed_values: dict[int, Any],
    coefficients: jax.Array | None = None,
) -> MatrixLayer:
    """The layer as a matrix.

    `fixed_values` has the values that no displacement changes, by number. If the kernel
    is drawn in a basis Q, `coefficients` are the rows in that basis, (*free, m).
    """
    shape = program.shapes[layer.result].shape
    dtype = program.shapes[layer.result].dtype
    ordered_shape = tuple(shape[axis] for axis in layer.result_order)
    num_row_axes = len(ordered_shape) - layer.num_feature_axes
    examples, features = ordered_shape[0], math.prod(ordered_shape[num_row_axes:])
    order = layer.kernel_order
    if coefficients is not None:
        # A displacement is (m, *the other axes in the order of the leaf).
        others = order[len(order) - layer.num_feature_axes :]
        order = (0, *(1 + sorted(others).index(axis) for axis in others))

    def matrix(kernel: jax.Array) -> jax.Array:
        return jnp.transpose(kernel, order).reshape(-1, features)

    def vector(bias: jax.Array) -> jax.Array:
        for view in layer.bias_views:
            (bias,) = view.bind(bias)
        ordered = jnp.transpose(bias, layer.result_order)
        return ordered[(0,) * num_row_axes].reshape(features)

    def basis_of(inputs: jax.Array) -> RowBasis:
        return row_basis(layer.rows(inputs, dtype), has_bias=layer.bias is not None)

    fixed_basis = None
    if coefficients is not None:
        row_axes = layer.inputs_order[:num_row_axes]
        free = sorted(row_axes)
        rows = jnp.transpose(coefficients, (*map(free.index, row_axes), len(free)))
        rows = rows.reshape(examples, layer.num_positions, -1)
        fixed_basis = row_basis(rows, has_bias=layer.bias is not None)
    elif layer.inputs in fixed_values:
        fixed_basis = basis_of(fixed_values[layer.inputs])
    leaves = (layer.kernel,) if layer.bias is None else (layer.kernel, layer.bias)
    zeros = jnp.zeros((examples, layer.num_positions, features), dtype)
    return MatrixLayer(leaves, fixed_basis, basis_of, matrix, vector, zeros)


def row_basis(rows: jax.Array, *, has_bias: bool) -> RowBasis:
    """A basis of the rows (..., B, T, n), each with one more entry, 1, for a bias.

    A single row stays as it is. Several rows are made orthonormal. A row that depends
    linearly on those before it becomes 0.
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


def products_of_noise(basis: RowBasis, noise: jax.Array) -> jax.Array:
    """The products Hᵢ ε = Rᵀ u, (B, T, o), for noise u in the basis of the rows."""
    if basis.root is None:
        norms = jnp.sqrt(basis.squared_norms)
        return norms.astype(noise.dtype)[..., None, None] * noise
    return jnp.einsum("...st,...so->...to", basis.root.astype(noise.dtype), noise)


def _orthonormal(rows: jax.Array) -> jax.Array:
    """The rows (..., T, n) made orthonormal, by Gram-Schmidt in two passes.

    A row in the span of those before it, up to rounding, becomes 0. This is for many
    small matrices: `jnp.linalg.qr` decomposes them one by one, and several such calls
    in a program deadlock on a CPU, in jax 0.10.
    """
    limit = 10 * jnp.finfo(rows.dtype).eps
    count = rows.shape[-2]

    def project_out(rest: jax.Array, unit: jax.Array) -> jax.Array:
        return rest - (unit * rest).sum(-1, keepdims=True) * unit

    def normalised(row: jax.Array, rest: jax.Array) -> jax.Array:
        """`rest`, the remainder of `row`, at norm 1; 0 if it is a rounding error."""
        before, after = (jnp.square(x).sum(-1, keepdims=True) for x in (row, rest))
        kept = after > limit**2 * before
        return jnp.where(kept, rest / jnp.sqrt(jnp.where(kept, after, 1)), 0)

    if count <= FEW_POSITIONS:  # unrolled, so that the compiler can fuse the steps
        basis: list[jax.Array] = []
        for t in range(count):
            row = rows[..., t, :]
            rest = functools.reduce(project_out, 2 * basis, row)
            basis.append(normalised(row, rest))
        return jnp.stack(basis, -2)

    def add_row(t: jax.Array, basis: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_index_in_dim(rows, t, -2, keepdims=False)

        def project_out_next(s: jax.Array, rest: jax.Array) -> jax.Array:
            unit = jax.lax.dynamic_index_in_dim(basis, s % t, -2, keepdims=False)
            return project_out(rest, unit)

        rest = jax.lax.fori_loop(0, 2 * t, project_out_next, row)
        return jax.lax.dynamic_update_index_in_dim(basis, normalised(row, rest), t, -2)

    return jax.lax.fori_loop(0, count, add_row, jnp.zeros_like(rows))


def over_squared_norms(basis: RowBasis, losses: jax.Array) -> jax.Array:
    """Losses (..., B), divided by the squared norm of the rows."""
    norms = jnp.where(basis.squared_norms > 0, basis.squared_norms, 1)
    return losses / norms.astype(losses.dtype)


def transposed_product(
    layer: MatrixLayer, basis: RowBasis, vectors: jax.Array, leaves: tuple[Any, ...]
) -> list[jax.Array]:
    """Σ Hᵢᵀvᵢ over the examples, for the kernel and the bias, as leaves.

    `vectors` are the vᵢ, (..., B, T, o). If the rows differ between the draws, the sum
    is over the draws as well. `leaves` have the shapes and dtypes of the result.
    """
    rows = basis.rows.reshape(-1, basis.rows.shape[-1])
    # There are many rows, so the smaller result is transposed instead.
    kernel = (vectors.reshape(-1, vectors.shape[-1]).T @ rows).T
    sums = [_pull_back(layer.matrix, leaves[0], kernel)]
    for leaf in leaves[1:]:
        ones = basis.ones[..., None] * vectors
        bias = ones.reshape(-1, ones.shape[-1]).sum(0)
        sums.append(_pull_back(layer.vector, leaf, bias))
    return sums


def _pull_back(view: Callable[..., jax.Array], leaf: Any, value: Any) -> jax.Array:
    """The transpose of the linear `view`, at `value`; `leaf` is like its argument."""
    # The argument must vary over the mesh axes of the value.
    leaf = jnp.zeros(leaf.shape, leaf.dtype) + 0 * value.ravel()[0].astype(leaf.dtype)
    shape = jax.eval_shape(view, leaf)
    (pulled_back,) = jax.linear_transpose(view, leaf)(value.astype(shape.dtype))
    return pulled_back
