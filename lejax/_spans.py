"""The layers of a program as matrices, and what every example sees of their noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._layers import Sight
from lejax._program import Program


class Layer(NamedTuple):
    """A layer of which each example sees its own part.

    Attributes:
        leaves: the places of its kernel and, if it has one, of its bias.
        rows: the Hᵢ, (B, T, n), where they are the same at every point, else None.
        to_rows: they, of the layer's inputs.
        matrix: a displacement of the kernel as a matrix (n, o).
        vector: one of the bias as a vector (o,).
        zeros: what is seen of no displacement, (B, T, o).
    """

    leaves: tuple[int, ...]
    rows: jax.Array | None
    to_rows: Callable[[jax.Array], jax.Array]
    matrix: Callable[[jax.Array], jax.Array]
    vector: Callable[[jax.Array], jax.Array]
    zeros: jax.Array

    @property
    def has_bias(self) -> bool:
        """Whether a bias is added."""
        return len(self.leaves) > 1


def make_layer(
    sight: Sight,
    program: Program,
    known: dict[int, Any],
    coefficients: jax.Array | None = None,
) -> Layer:
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

    rows = None
    if coefficients is not None:
        places = sight.inputs_order[:ahead]
        free = sorted(places)
        rows = jnp.transpose(coefficients, (*map(free.index, places), len(free)))
        rows = rows.reshape(examples, sight.positions, -1)
    elif sight.inputs in known:
        rows = sight.rows(known[sight.inputs])
    leaves = (sight.kernel,) if sight.bias is None else (sight.kernel, sight.bias)
    zeros = jnp.zeros((examples, sight.positions, features), dtype)
    return Layer(leaves, rows, sight.rows, matrix, vector, zeros)


class Span(NamedTuple):
    """Rows that span what the examples see of a layer; orthogonal in every example.

    Attributes:
        rows: (..., B, T, n).
        ones: what the bias is multiplied with, (..., B, T).
        squares: the square of the norm of each, (..., B), but for those that are 0.
        finite: whether they are, (..., B); where not, that is the earlier noise's
            doing: no credit at all, and 0 stands for them.
    """

    rows: jax.Array
    ones: jax.Array
    squares: jax.Array
    finite: jax.Array


def spanned(layer: Layer, rows: jax.Array) -> Span:
    """What spans the rows (..., B, T, n), where a bias is one more number, 1, of each.

    A single row as it is; of several an orthonormal basis, with 0 for what is not
    needed.
    """
    squares = jnp.square(rows).sum((-2, -1)) + int(layer.has_bias)
    finite = jnp.isfinite(squares)
    rows = jnp.where(finite[..., None, None], rows, 0)
    if rows.shape[-2] == 1:
        return Span(rows, jnp.ones_like(rows[..., 0]), squares, finite)
    basis = _orthonormal(_with_ones(layer, rows))
    rows, ones = basis[..., : rows.shape[-1]], basis[..., -1]
    return Span(rows, ones, jnp.ones_like(squares), finite)


def seen_of(layer: Layer, rows: jax.Array, noise: jax.Array) -> jax.Array:
    """What the rows see of a kernel whose part in their span is this noise, (B, T, o).

    It is Rᵀ u, where Hᵢ is Rᵀ times the orthonormal rows of the span.
    """
    if rows.shape[-2] == 1:
        squares = jnp.square(rows).sum(-1, keepdims=True) + int(layer.has_bias)
        return jnp.sqrt(squares).astype(noise.dtype) * noise
    rows = _with_ones(layer, rows)
    r = jnp.einsum("...sn,...tn->...st", _orthonormal(rows), rows)
    return jnp.einsum("...st,...so->...to", r.astype(noise.dtype), noise)


def _with_ones(layer: Layer, rows: jax.Array) -> jax.Array:
    if not layer.has_bias:
        return rows
    return jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], -1)


def _orthonormal(rows: jax.Array) -> jax.Array:
    """The rows (..., T, n) made orthonormal, by Gram and Schmidt, each of them twice.

    What lies in the span of those before, to rounding, becomes 0. It is for many small
    matrices: `jnp.linalg.qr` takes them one by one, and several such calls in a program
    stop each other for ever on a CPU, in jax 0.10.
    """
    limit = 10 * jnp.finfo(rows.dtype).eps

    def with_row(t: jax.Array, basis: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_index_in_dim(rows, t, -2, keepdims=False)
        left = row
        for _ in range(2):
            along = (basis * left[..., None, :]).sum(-1, keepdims=True)
            left = left - (along * basis).sum(-2)
        whole, rest = (jnp.square(x).sum(-1, keepdims=True) for x in (row, left))
        kept = rest > limit**2 * whole
        unit = jnp.where(kept, left / jnp.sqrt(jnp.where(kept, rest, 1)), 0)
        return jax.lax.dynamic_update_index_in_dim(basis, unit, t, -2)

    return jax.lax.fori_loop(0, rows.shape[-2], with_row, jnp.zeros_like(rows))


def weights(met: Span, losses: jax.Array) -> jax.Array:
    """Losses (..., B) by the square of the norm of the rows."""
    return losses / jnp.where(met.squares > 0, met.squares, 1).astype(losses.dtype)


def plus(total: jax.Array | None, part: jax.Array) -> jax.Array:
    """The sum, of which nothing may be there yet."""
    return part if total is None else total + part


def transposed(
    layer: Layer, met: Span, weighted: jax.Array, point: tuple[Any, ...]
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
