"""How a loss uses its parameters: which leaves it meets by known rows alone.

A leaf qualifies where every use of it is a product A W, or a choice of rows W[i], along
one and the same of its axes (or group of axes), with an A or i that depends on no
parameter. What is not known here disqualifies the leaf, and its reason is kept.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.lax import GatherScatterMode

from lejax._tracing.program import Operation, Program

_FILL = GatherScatterMode.FILL_OR_DROP
_CLIP = GatherScatterMode.CLIP
_PROMISE = GatherScatterMode.PROMISE_IN_BOUNDS


class RowMatrix(NamedTuple):
    """A known operand of a product: its free axes, and those that are contracted."""

    number: int
    free: tuple[int, ...]
    contracted: tuple[int, ...]

    def rows(self, value: jax.Array) -> jax.Array:
        """The operand with its n contracted numbers last: (*free, n)."""
        value = jnp.transpose(value, self.free + self.contracted)
        free, size = value.shape[: len(self.free)], value.shape[len(self.free) :]
        return value.reshape(*free, math.prod(size))

    def free_shape(self, rows: jax.Array) -> tuple[int, ...]:
        """The shape of `rows` but for the numbers of a row."""
        return rows.shape[:-1]

    def count(self, shape: tuple[int, ...]) -> int:
        """How many rows an operand of this shape holds."""
        return math.prod(shape[i] for i in self.free)


class RowGather(NamedTuple):
    """Known indices, of which one component numbers rows of a table of `size` rows."""

    number: int
    component: int
    size: int
    clip: bool

    def rows(self, value: jax.Array) -> jax.Array:
        """The numbers of the rows; `size` for those out of range, which read none."""
        rows = value[..., self.component]
        if rows.dtype.itemsize < 4:  # the size may be beyond its range
            rows = rows.astype(jnp.int32)
        if self.clip:
            return rows.clip(0, self.size - 1)
        return jnp.where((rows >= 0) & (rows < self.size), rows, self.size)

    def free_shape(self, rows: jax.Array) -> tuple[int, ...]:
        """The shape of `rows`, each but a number."""
        return rows.shape

    def count(self, shape: tuple[int, ...]) -> int:
        """How many rows indices of this shape number."""
        return math.prod(shape[:-1])


RowSource: TypeAlias = RowMatrix | RowGather
RowValues: TypeAlias = dict[RowSource, jax.Array]


class KnownOperand(NamedTuple):
    """A product or a choice of rows.

    Attributes:
        operation: what does it.
        factor: the known rows.
        axes: the axes of the leaf along which it is met, in rising order.
        order: the axes of (*free, *the other axes of the leaf) in the order of the
            result, but for axes of length 1.
    """

    operation: Operation
    factor: RowSource
    axes: tuple[int, ...]
    order: tuple[int, ...]


class LeafUse(NamedTuple):
    """A leaf that is met by known rows alone.

    Attributes:
        axes: the axes of the leaf along which it is met.
        uses: where; empty where the loss does not use the leaf.
        views: the operations that only show the leaf otherwise, on the way there.
        rows: m, the number of known rows.
        whole: why it keeps all its numbers, where they are not fewer than it has.
    """

    axes: tuple[int, ...]
    uses: tuple[KnownOperand, ...]
    views: tuple[Operation, ...]
    rows: int
    whole: str = ""

    def order(self, ndim: int) -> tuple[int, ...]:
        """The axes along which the leaf is met, and then its others."""
        return self.axes + tuple(i for i in range(ndim) if i not in self.axes)

    def size(self, shape: tuple[int, ...]) -> int:
        """n, the numbers of the leaf that a row meets."""
        return math.prod(shape[i] for i in self.axes)

    def reduced_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a displacement in the directions of the rows."""
        others = self.order(len(shape))[len(self.axes) :]
        return (self.rows, *(shape[i] for i in others))


class UnknownUseError(Exception):
    """A use that disqualifies the leaf, for the reason that it carries."""


def find_leaf_uses(
    program: Program, leaves: int, turns: int = 1, parts: int = 1
) -> list[LeafUse | str]:
    """How each of the first `leaves` inputs is met, or the reason why it is not.

    `program` is that of the loss. The inputs after the leaves are those of the batch,
    of which there are `turns`, and `parts` of each: the rows of all of them count.
    """
    if why := program.in_one_piece():
        return [why] * leaves
    numbers = program.inputs[:leaves]
    turning = program.dependents(program.inputs[leaves:])
    unknown = program.dependents(numbers)
    # Where a leaf is seen: which, and which of its axes every axis there is.
    views = {
        number: (leaf, tuple(range(len(program.shapes[number].shape))))
        for leaf, number in enumerate(numbers)
    }
    ways: list[list[Operation]] = [[] for _ in numbers]
    uses: list[list[KnownOperand]] = [[] for _ in numbers]
    reasons: dict[int, str] = {}
    for operation in program.operations:
        for operand, number in enumerate(operation.inputs):
            if number not in views:
                continue
            leaf, axes = views[number]
            seen = shown_axes(program, operation, axes)
            if seen is not None:
                views[operation.outputs[0]] = (leaf, seen)
                ways[leaf].append(operation)
                continue
            try:
                uses[leaf].append(_use(program, operation, operand, axes, unknown))
            except UnknownUseError as reason:
                reasons.setdefault(leaf, str(reason))
    if program.output in views:
        reasons[views[program.output][0]] = "it is the loss itself"

    def judge(leaf: int, number: int) -> LeafUse | str:
        if leaf in reasons:
            return reasons[leaf]
        shape = program.shapes[number].shape
        along = {use.axes for use in uses[leaf]} or {tuple(range(len(shape)))}
        factors = {use.factor for use in uses[leaf]}
        if len(along) > 1:
            return "met along different axes"
        if len(set(map(type, factors))) > 1:
            return "both multiplied and indexed"
        widest = max(
            (program.shapes[factor.number].dtype.itemsize for factor in factors),
            default=0,
        )
        dtype = program.shapes[number].dtype
        if RowMatrix in map(type, factors) and widest > max(4, dtype.itemsize):
            return "its rows have more digits than it has"
        (axes,) = along
        rows = parts * sum(
            factor.count(program.shapes[factor.number].shape)
            * (turns if factor.number in turning else 1)
            for factor in factors
        )
        size = math.prod(shape[i] for i in axes)
        whole = f"{rows} rows meet {size} inputs" if rows >= size else ""
        return LeafUse(axes, tuple(uses[leaf]), tuple(ways[leaf]), rows, whole)

    return [judge(leaf, number) for leaf, number in enumerate(numbers)]


def shown_axes(
    program: Program, operation: Operation, axes: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The axes of a leaf after an operation that only shows it otherwise."""
    if operation.name == "transpose":
        return tuple(axes[i] for i in operation.params["permutation"])
    if operation.name == "convert_element_type":
        before = program.shapes[operation.inputs[0]].dtype
        after = program.shapes[operation.outputs[0]].dtype
        # A cast that loses digits is a function of its own.
        if jnp.issubdtype(after, jnp.floating) and (
            jnp.finfo(after).nmant >= jnp.finfo(before).nmant
            and jnp.finfo(after).maxexp >= jnp.finfo(before).maxexp
        ):
            return axes
    return None


def _use(
    program: Program,
    operation: Operation,
    operand: int,
    axes: tuple[int, ...],
    unknown: Container[int],
) -> KnownOperand:
    """The operation as a use of the leaf that is seen in `axes` as its operand."""
    recognise = {"dot_general": _product, "gather": _choice}.get(operation.name)
    if recognise is None:
        raise UnknownUseError(f"used by {operation.name}")
    if any(
        number in unknown
        for place, number in enumerate(operation.inputs)
        if place != operand
    ):
        raise UnknownUseError("its rows depend on parameters")
    values = (*operation.inputs, *operation.outputs)
    if any(is_sharded(program.shapes[number]) for number in values):
        raise UnknownUseError("sharded over an explicit mesh")
    return recognise(program, operation, operand, axes)


def is_sharded(aval: Any) -> bool:
    """Whether a value is laid out over a mesh with explicit axes."""
    spec = getattr(getattr(aval, "sharding", None), "spec", None) or ()
    return any(entry is not None for entry in spec)


def _product(
    program: Program, operation: Operation, operand: int, axes: tuple[int, ...]
) -> KnownOperand:
    contracting, batching = operation.params["dimension_numbers"]
    if batching[0]:
        raise UnknownUseError("used by dot_general with batch dimensions")
    if operation.params.get("out_sharding") is not None:
        raise UnknownUseError("used by dot_general with a sharding of its own")
    number = program.source(operation.inputs[1 - operand])
    rows = program.shapes[number].dtype
    if jnp.issubdtype(rows, jnp.complexfloating):
        raise UnknownUseError("its rows are complex")
    if not jnp.issubdtype(program.shapes[operation.outputs[0]].dtype, jnp.inexact):
        raise UnknownUseError("its product is rounded to integers")
    met = sorted(
        (axes[mine], other)
        for mine, other in zip(
            contracting[operand], contracting[1 - operand], strict=True
        )
    )
    along = tuple(axis for axis, _ in met)
    contracted = tuple(other for _, other in met)
    free = tuple(
        i for i in range(len(program.shapes[number].shape)) if i not in contracted
    )
    rest = [axis for axis in range(len(axes)) if axis not in along]
    mine = tuple(len(free) + rest.index(axis) for axis in axes if axis in rest)
    theirs = tuple(range(len(free)))
    order = mine + theirs if operand == 0 else theirs + mine
    return KnownOperand(operation, RowMatrix(number, free, contracted), along, order)


def _choice(
    program: Program, operation: Operation, operand: int, axes: tuple[int, ...]
) -> KnownOperand:
    numbers, sizes = (
        operation.params["dimension_numbers"],
        operation.params["slice_sizes"],
    )
    mode = operation.params["mode"]
    table, number = operation.inputs[0], program.source(operation.inputs[1])
    shape = program.shapes[table].shape
    partial = [i for i, size in enumerate(sizes) if size != shape[i]]
    if (
        operand != 0
        or len(partial) != 1
        or sizes[partial[0]] != 1
        or partial[0] not in numbers.start_index_map
        or numbers.operand_batching_dims
        or mode not in (_FILL, _CLIP, _PROMISE)
        # Out of range in another component, a row would be filled as well.
        or (mode == _FILL and len(numbers.start_index_map) > 1)
    ):
        raise UnknownUseError("used by a gather of more than whole rows")
    (axis,) = partial
    rest = [i for i in range(len(axes)) if i != axes[axis]]
    free = len(program.shapes[number].shape) - 1
    kept = iter(i for i in range(len(axes)) if i not in numbers.collapsed_slice_dims)
    theirs = iter(range(free))
    order = tuple(
        free + rest.index(axes[shown]) if shown is not None else next(theirs)
        for place in range(len(program.shapes[operation.outputs[0]].shape))
        if (shown := next(kept) if place in numbers.offset_dims else None) != axis
    )
    # Other axes that the result has lost are of length 1.
    order += tuple(i for i in range(free + len(rest)) if i not in order)
    factor = RowGather(
        number, numbers.start_index_map.index(axis), shape[axis], mode != _FILL
    )
    return KnownOperand(operation, factor, (axes[axis],), order)
