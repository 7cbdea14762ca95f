"""Finds the leaves that the loss uses only in products with known rows.

In this folder *known* means: independent of the parameters. A leaf W qualifies if each
of its uses is a product A W or an indexing W[i] with known A or i, always along the
same axis (or axes) of W. Any other use disqualifies the leaf. The reason stands in the
report.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.lax import GatherScatterMode

from lejax._tracing.dot_general import read_dot_general
from lejax._tracing.program import Operation, Program
from lejax._tracing.views import UnknownUseError, axes_of_view, is_sharded

_FILL = GatherScatterMode.FILL_OR_DROP
_CLIP = GatherScatterMode.CLIP
_PROMISE = GatherScatterMode.PROMISE_IN_BOUNDS


class RowMatrix(NamedTuple):
    """Rows of numbers: the known operand A of a product A W.

    Attributes:
        number: the number of the operand.
        free: its free axes, which number the rows.
        contracted: its contracted axes, which hold the entries of a row.
    """

    number: int
    free: tuple[int, ...]
    contracted: tuple[int, ...]

    def rows(self, value: jax.Array) -> jax.Array:
        """The rows, with their n entries on the last axis: (*free, n)."""
        value = jnp.transpose(value, self.free + self.contracted)
        free, contracted = value.shape[: len(self.free)], value.shape[len(self.free) :]
        return value.reshape(*free, math.prod(contracted))

    def free_shape(self, rows: jax.Array) -> tuple[int, ...]:
        """The shape of the free axes of `rows`."""
        return rows.shape[:-1]

    def num_rows(self, shape: tuple[int, ...]) -> int:
        """The number of rows in an operand of this shape."""
        return math.prod(shape[i] for i in self.free)


class RowGather(NamedTuple):
    """Rows of the identity, by index: the known indices i of W[i].

    Attributes:
        number: the number of the indices.
        component: which component of an index is the row of W.
        size: the number of rows of W.
        clip: True if an index out of range is clipped, False if it reads no row.
    """

    number: int
    component: int
    size: int
    clip: bool

    def rows(self, value: jax.Array) -> jax.Array:
        """The indices of the rows; `size` for an index that reads no row."""
        rows = value[..., self.component]
        if rows.dtype.itemsize < 4:  # `size` may exceed its range
            rows = rows.astype(jnp.int32)
        if self.clip:
            return rows.clip(0, self.size - 1)
        return jnp.where((rows >= 0) & (rows < self.size), rows, self.size)

    def free_shape(self, rows: jax.Array) -> tuple[int, ...]:
        """The shape of `rows`, which has one index for each row."""
        return rows.shape

    def num_rows(self, shape: tuple[int, ...]) -> int:
        """The number of rows that indices of this shape read."""
        return math.prod(shape[:-1])


RowSource: TypeAlias = RowMatrix | RowGather
RowValues: TypeAlias = dict[RowSource, jax.Array]


class KnownOperand(NamedTuple):
    """One product A W or indexing W[i].

    Attributes:
        operation: the operation.
        row_source: A or i.
        axes: the contracted or indexed axes of the leaf, in increasing order.
        result_order: the axes of (*free, *the other axes of the leaf) in the order of
            the result, up to axes of length 1.
    """

    operation: Operation
    row_source: RowSource
    axes: tuple[int, ...]
    result_order: tuple[int, ...]


class LeafUse(NamedTuple):
    """All uses of a leaf that the loss uses only with known rows.

    Attributes:
        axes: the contracted or indexed axes of the leaf, the same in all uses.
        operands: one for each use; empty if the loss does not use the leaf.
        views: the views of the leaf on the way to its uses.
        num_rows: m, the number of known rows.
        why_whole: the reason not to reduce the leaf if m is too large; else empty.
    """

    axes: tuple[int, ...]
    operands: tuple[KnownOperand, ...]
    views: tuple[Operation, ...]
    num_rows: int
    why_whole: str = ""

    def order(self, ndim: int) -> tuple[int, ...]:
        """The axes of the leaf: first `axes`, then the others."""
        return self.axes + tuple(i for i in range(ndim) if i not in self.axes)

    def row_length(self, shape: tuple[int, ...]) -> int:
        """n, the length of a row, for a leaf of this shape."""
        return math.prod(shape[i] for i in self.axes)

    def reduced_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape (m, *others) of a displacement along the span of the rows."""
        others = self.order(len(shape))[len(self.axes) :]
        return (self.num_rows, *(shape[i] for i in others))


def find_leaf_uses(
    program: Program, num_leaves: int, num_batches: int = 1, num_members: int = 1
) -> list[LeafUse | str]:
    """The uses of each of the first `num_leaves` inputs, or why it does not qualify.

    The inputs after these are the leaves of the batch. The number of rows is that of
    all `num_batches` inner batches and of all `num_members` members that hold parts.
    """
    if reason := program.why_not_in_parts():
        return [reason] * num_leaves
    numbers = program.inputs[:num_leaves]
    on_batch = program.dependents(program.inputs[num_leaves:])
    on_params = program.dependents(numbers)
    # Every value that is a view of a leaf: the leaf, and its axes in the view.
    shown = {
        number: (leaf, tuple(range(len(program.shapes[number].shape))))
        for leaf, number in enumerate(numbers)
    }
    views: list[list[Operation]] = [[] for _ in numbers]
    operands: list[list[KnownOperand]] = [[] for _ in numbers]
    reasons: dict[int, str] = {}
    for operation in program.operations:
        for index, number in enumerate(operation.inputs):
            if number not in shown:
                continue
            leaf, axes = shown[number]
            view_axes = axes_of_view(program, operation, axes)
            if view_axes is not None:
                shown[operation.outputs[0]] = (leaf, view_axes)
                views[leaf].append(operation)
                continue
            try:
                operand = _known_operand(program, operation, index, axes, on_params)
                operands[leaf].append(operand)
            except UnknownUseError as error:
                reasons.setdefault(leaf, str(error))
    if program.output in shown:
        reasons[shown[program.output][0]] = "it is the loss itself"

    def leaf_use(leaf: int, number: int) -> LeafUse | str:
        if leaf in reasons:
            return reasons[leaf]
        shape, dtype = program.shapes[number].shape, program.shapes[number].dtype
        axes_of_uses = {operand.axes for operand in operands[leaf]}
        row_sources = {operand.row_source for operand in operands[leaf]}
        if len(axes_of_uses) > 1:
            return "met along different axes"
        if len(set(map(type, row_sources))) > 1:
            return "both multiplied and indexed"
        widest = max(
            (program.shapes[source.number].dtype.itemsize for source in row_sources),
            default=0,
        )
        if RowMatrix in map(type, row_sources) and widest > max(4, dtype.itemsize):
            return "its rows have a wider dtype than the leaf"
        (axes,) = axes_of_uses or {tuple(range(len(shape)))}
        num_rows = num_members * sum(
            source.num_rows(program.shapes[source.number].shape)
            * (num_batches if source.number in on_batch else 1)
            for source in row_sources
        )
        size = math.prod(shape[i] for i in axes)
        why_whole = f"{num_rows} rows meet {size} inputs" if num_rows >= size else ""
        return LeafUse(
            axes, tuple(operands[leaf]), tuple(views[leaf]), num_rows, why_whole
        )

    return [leaf_use(leaf, number) for leaf, number in enumerate(numbers)]


def _known_operand(
    program: Program,
    operation: Operation,
    index: int,
    axes: tuple[int, ...],
    on_params: Container[int],
) -> KnownOperand:
    """The use of a leaf, whose axes in the operand `index` are `axes`."""
    readers = {"dot_general": _product_with_rows, "gather": _gather_of_rows}
    read = readers.get(operation.name)
    if read is None:
        raise UnknownUseError(f"used by {operation.name}")
    others = (n for place, n in enumerate(operation.inputs) if place != index)
    if any(number in on_params for number in others):
        raise UnknownUseError("its rows depend on parameters")
    values = (*operation.inputs, *operation.outputs)
    if any(is_sharded(program.shapes[number]) for number in values):
        raise UnknownUseError("sharded over an explicit mesh")
    return read(program, operation, index, axes)


def _product_with_rows(
    program: Program, operation: Operation, index: int, axes: tuple[int, ...]
) -> KnownOperand:
    product = read_dot_general(program, operation, index)
    if operation.params.get("out_sharding") is not None:
        raise UnknownUseError("used by dot_general with a sharding of its own")
    number = program.source(operation.inputs[1 - index])
    if jnp.issubdtype(program.shapes[number].dtype, jnp.complexfloating):
        raise UnknownUseError("its rows are complex")
    if not jnp.issubdtype(program.shapes[operation.outputs[0]].dtype, jnp.inexact):
        raise UnknownUseError("its product is rounded to integers")
    # Pairs of a contracted axis of the leaf and one of the rows.
    leaf_axes = (axes[axis] for axis in product.kernel_contracted)
    pairs = sorted(zip(leaf_axes, product.rows_contracted, strict=True))
    contracted = tuple(of_leaf for of_leaf, _ in pairs)
    row_axes = tuple(of_rows for _, of_rows in pairs)
    row_source = RowMatrix(number, product.rows_free, row_axes)
    others = [axis for axis in range(len(axes)) if axis not in contracted]
    num_free = len(product.rows_free)
    free = [num_free + others.index(axes[axis]) for axis in product.kernel_free]
    in_result = dict(zip(product.result_of_rows, range(num_free), strict=True))
    in_result |= dict(zip(product.result_of_kernel, free, strict=True))
    order = tuple(in_result[axis] for axis in sorted(in_result))
    return KnownOperand(operation, row_source, contracted, order)


def _gather_of_rows(
    program: Program, operation: Operation, index: int, axes: tuple[int, ...]
) -> KnownOperand:
    dimensions = operation.params["dimension_numbers"]
    sizes, mode = operation.params["slice_sizes"], operation.params["mode"]
    table, number = operation.inputs[0], program.source(operation.inputs[1])
    shape = program.shapes[table].shape
    indexed = [i for i, size in enumerate(sizes) if size != shape[i]]
    if (
        index != 0
        or len(indexed) != 1
        or sizes[indexed[0]] != 1
        or indexed[0] not in dimensions.start_index_map
        or dimensions.operand_batching_dims
        or mode not in (_FILL, _CLIP, _PROMISE)
        # An index out of range in another component would fill a row as well.
        or (mode == _FILL and len(dimensions.start_index_map) > 1)
    ):
        raise UnknownUseError("used by a gather that does not read whole rows")
    (axis,) = indexed
    others = [i for i in range(len(axes)) if i != axes[axis]]
    num_free = len(program.shapes[number].shape) - 1
    # In the result the kept axes of the table are at `offset_dims`. All other axes are
    # those of the indices.
    collapsed = dimensions.collapsed_slice_dims
    of_table = iter(i for i in range(len(axes)) if i not in collapsed)
    of_indices = iter(range(num_free))
    order = tuple(
        num_free + others.index(axes[kept]) if kept is not None else next(of_indices)
        for place in range(len(program.shapes[operation.outputs[0]].shape))
        if (kept := next(of_table) if place in dimensions.offset_dims else None) != axis
    )
    # The result lacks other axes only if they have length 1.
    order += tuple(i for i in range(num_free + len(others)) if i not in order)
    row_source = RowGather(
        number, dimensions.start_index_map.index(axis), shape[axis], mode != _FILL
    )
    return KnownOperand(operation, row_source, (axes[axis],), order)
