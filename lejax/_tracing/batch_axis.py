"""Follows the batch axis through a program, operation by operation.

The batch axis is the axis of the examples. A rule for each primitive computes the batch
axis of its result. A primitive without a rule counts as mixing the examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lejax._tracing.program import Operation, Program, read


class ExamplesMixError(Exception):
    """An operation mixes the examples; the message names it."""


def follow_batch_axis(
    program: Program, operations: Iterable[Operation], axes: dict[int, int]
) -> dict[int, int]:
    """The batch axis of every value that is computed from the values in `axes`.

    `axes` maps the numbers of the starting values to their batch axes. If a value has
    the batch axis e, its entry i along e depends only on entry i of these values.
    """
    axes = dict(axes)
    for operation in operations:
        in_operands = [axes.get(number) for number in operation.inputs]
        if all(axis is None for axis in in_operands):
            continue
        if operation.name == "scan":
            in_results = _scan(program, operation, in_operands)
            results = zip(operation.outputs, in_results, strict=True)
            axes.update({number: axis for number, axis in results if axis is not None})
            continue
        rule = _RULES.get(operation.name)
        axis = None if rule is None else rule(program, operation, in_operands)
        if axis is None:
            raise ExamplesMixError(f"examples meet in {operation.name}")
        axes.update(dict.fromkeys(operation.outputs, axis))
    return axes


# Maps the batch axes of all operands to that of the result; None if examples mix.
_Rule = Callable[[Program, Operation, list[int | None]], int | None]


def _common(axes: list[int | None]) -> int | None:
    """The batch axis of all operands that have one; None if they differ."""
    distinct = {axis for axis in axes if axis is not None}
    return distinct.pop() if len(distinct) == 1 else None


def _shape(program: Program, number: int) -> tuple[int, ...]:
    return program.shapes[number].shape


def _elementwise(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    axis, result = _common(axes), _shape(program, op.outputs[0])
    # Only the other axes may have length 1 and be broadcast.
    for number, own in zip(op.inputs, axes, strict=True):
        shape = _shape(program, number)
        if own is not None and (len(shape) != len(result) or shape[own] != result[own]):
            return None
    return axis


def _along_other_axes(name: str) -> _Rule:
    """The rule for operations along the axes in parameter `name`; the shape stays."""

    def rule(program: Program, op: Operation, axes: list[int | None]) -> int | None:
        axis = _common(axes)
        along = op.params[name]
        taken = along if isinstance(along, (tuple, list)) else (along,)
        return None if axis in taken else axis

    return rule


def _dropping(name: str) -> _Rule:
    """The rule for operations that remove the axes in parameter `name`."""

    def rule(program: Program, op: Operation, axes: list[int | None]) -> int | None:
        axis, taken = _common(axes), op.params[name]
        if axis is None or axis in taken:
            return None
        return axis - sum(other < axis for other in taken)

    return rule


def _transpose(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    axis = _common(axes)
    return None if axis is None else op.params["permutation"].index(axis)


def _broadcast(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    axis = axes[0]
    if axis is None:
        return None
    to = op.params["broadcast_dimensions"][axis]
    size = _shape(program, op.inputs[0])[axis]
    return to if _shape(program, op.outputs[0])[to] == size else None


def _reshape(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    axis = axes[0]
    if axis is None or op.params.get("dimensions") is not None:
        return None
    before, after = _shape(program, op.inputs[0]), _shape(program, op.outputs[0])
    first = math.prod(before[:axis])
    for to, size in enumerate(after):
        if size == before[axis] and math.prod(after[:to]) == first:
            return to
    return None


def _slice(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    axis = axes[0]
    before, after = _shape(program, op.inputs[0]), _shape(program, op.outputs[0])
    if axis is None or before[axis] != after[axis]:
        return None
    return axis


def _concatenate(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    axis = _common(axes)
    return None if axis == op.params["dimension"] else axis


def _dot_general(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    contracting, batching = op.params["dimension_numbers"]
    in_result = []
    for index, axis in enumerate(axes):
        if axis is None:
            continue
        if axis in batching[index]:
            in_result.append(batching[index].index(axis))
        elif axis in contracting[index]:
            return None
        else:
            taken = (*contracting[index], *batching[index])
            ndim = len(_shape(program, op.inputs[index]))
            free = [i for i in range(ndim) if i not in taken]
            first = len(batching[0])
            if index == 1:
                first = len(_shape(program, op.inputs[0])) - len(contracting[0])
            in_result.append(first + free.index(axis))
    return _common(in_result)


def _gather(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    """Indexing along other axes; the examples share the indices or have their own."""
    numbers, axis = op.params["dimension_numbers"], axes[0]
    if axis is None or axes[1] is not None:
        return None
    batching = numbers.operand_batching_dims
    if axis in batching:
        in_indices = numbers.start_indices_batching_dims[batching.index(axis)]
        result = range(len(_shape(program, op.outputs[0])))
        return [i for i in result if i not in numbers.offset_dims][in_indices]
    shape = _shape(program, op.inputs[0])
    dropped = (*numbers.collapsed_slice_dims, *batching)
    kept = [i for i in range(len(shape)) if i not in dropped]
    whole = op.params["slice_sizes"][axis] == shape[axis]
    if axis not in kept or axis in numbers.start_index_map or not whole:
        return None
    return numbers.offset_dims[kept.index(axis)]


def _convolution(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    numbers = op.params["dimension_numbers"]
    if axes[0] != numbers.lhs_spec[0] or axes[1] is not None:
        return None
    return numbers.out_spec[0] if op.params["batch_group_count"] == 1 else None


def _pad(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    axis = axes[0]
    if axis is None or axes[1] is not None:
        return None
    return axis if op.params["padding_config"][axis] == (0, 0, 0) else None


def _window(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    """Pooling: a window must have length 1 along the batch axis."""
    axis, params = axes[0], op.params
    if axis is None or any(other is not None for other in axes[1:]):
        return None
    separate = (
        params["window_dimensions"][axis] == params["window_strides"][axis] == 1
        and params["padding"][axis] == (0, 0)
        and params.get("base_dilation", (1,) * (axis + 1))[axis] == 1
    )
    return axis if separate else None


def _custom(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    """A function with a custom derivative rule: follows the axis through its body."""
    closed = op.params.get("call_jaxpr") or op.params.get("fun_jaxpr")
    if closed is None or len(op.outputs) != 1:
        return None
    try:
        return _axis_in_result(read(closed.jaxpr, closed.consts), axes)
    except ExamplesMixError:
        return None


def _scan(program: Program, op: Operation, axes: list[int | None]) -> list[int | None]:
    """The batch axis of every result, if no iteration mixes the examples.

    A carried value must have the same batch axis in all iterations.
    """
    closed = op.params["jaxpr"]

    def unscanned(numbers: tuple[int, ...], avals: Sequence[Any]) -> int:
        """The number of values whose shape in the body is their own: not scanned."""
        shapes = zip(numbers, avals, strict=True)
        return sum(_shape(program, number) == aval.shape for number, aval in shapes)

    # The operands are the constants, the carry and the scanned arrays, in this order.
    first_scanned = unscanned(op.inputs, closed.in_avals)
    first_carry = first_scanned - unscanned(op.outputs, closed.out_avals)
    if 0 in axes[first_scanned:]:
        raise ExamplesMixError("examples meet in scan, which loops over them")
    bodies = [
        read(closed.jaxpr, closed.consts, output) for output in range(len(op.outputs))
    ]
    scanned = [a if a is None else a - 1 for a in axes[first_scanned:]]
    in_body = axes[:first_scanned] + scanned
    while True:
        in_results = [_axis_in_result(body, in_body) for body in bodies]
        carry = in_body[first_carry:first_scanned]
        for place, (before, after) in enumerate(zip(carry, in_results, strict=False)):
            if None not in (before, after) and before != after:
                raise ExamplesMixError("examples meet in scan, which moves their axis")
            carry[place] = after if before is None else before
        if carry == in_body[first_carry:first_scanned]:
            stacked = in_results[len(carry) :]
            return carry + [a if a is None else a + 1 for a in stacked]
        in_body[first_carry:first_scanned] = carry


def _axis_in_result(body: Program, axes: list[int | None]) -> int | None:
    """The batch axis of a program's result, given those of its arguments."""
    in_arguments = {
        n: axis for n, axis in zip(body.inputs, axes, strict=True) if axis is not None
    }
    return follow_batch_axis(body, body.operations, in_arguments).get(body.output)


_ELEMENTWISE = (
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan"),
    *("atan2", "atanh", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos"),
    *("cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1"),
    *("floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p"),
    *("log2", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not"),
    *("one_minus_square", "or", "polynomial", "pow", "pvary", "reduce_precision"),
    *("rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square"),
    *("stop_gradient", "sub", "tan", "tanh", "xor"),
)
_REDUCTIONS = (
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and"),
    *("reduce_or", "argmax", "argmin"),
)
_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
_WINDOWS = (
    *("reduce_window", "reduce_window_max"),
    *("reduce_window_min", "reduce_window_sum"),
)
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _dropping("axes")),
    **dict.fromkeys(_CUMULATIVE, _along_other_axes("axis")),
    "sort": _along_other_axes("dimension"),
    "split": _along_other_axes("axis"),
    "rev": _along_other_axes("dimensions"),
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _dropping("dimensions"),
    "slice": _slice,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "gather": _gather,
    "conv_general_dilated": _convolution,
    "pad": _pad,
    **dict.fromkeys(_WINDOWS, _window),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), _custom),
}
