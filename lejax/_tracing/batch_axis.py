"""Along which axis the examples of a batch lie apart, operation by operation.

A rule for every operation here says where the axis goes; what has no rule counts as a
meeting of the examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.extend import core

from lejax._tracing.program import Operation, Program, trace


class ExamplesMixError(Exception):
    """The examples meet, in the operation that it names."""


def follow_batch_axis(
    program: Program, operations: Iterable[Operation], axes: dict[int, int]
) -> dict[int, int]:
    """Along which axis the examples lie apart, for all that comes from those numbers.

    A value with the axis e depends at its place i along e on the place i of those that
    it comes from, and on nothing else of them.
    """
    axes = dict(axes)
    for operation in operations:
        mine = [axes.get(number) for number in operation.inputs]
        if all(axis is None for axis in mine):
            continue
        if operation.name == "scan":
            found = zip(operation.outputs, _scan(program, operation, mine), strict=True)
            axes.update({number: axis for number, axis in found if axis is not None})
            continue
        rule = _RULES.get(operation.name)
        axis = None if rule is None else rule(program, operation, mine)
        if axis is None:
            raise ExamplesMixError(f"examples meet in {operation.name}")
        axes.update(dict.fromkeys(operation.outputs, axis))
    return axes


_Rule = Callable[[Program, Operation, list[int | None]], int | None]


def _common(axes: list[int | None]) -> int | None:
    """The one axis of all operands that have any."""
    known = {axis for axis in axes if axis is not None}
    return known.pop() if len(known) == 1 else None


def _shape(program: Program, number: int) -> tuple[int, ...]:
    return program.shapes[number].shape


def _elementwise(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    axis, result = _common(axes), _shape(program, op.outputs[0])
    # Other axes may have the length 1, and be repeated.
    for number, mine in zip(op.inputs, axes, strict=True):
        shape = _shape(program, number)
        if mine is not None and (
            len(shape) != len(result) or shape[mine] != result[mine]
        ):
            return None
    return axis


def _along_others(name: str) -> _Rule:
    """Operations that keep the shape, along the axis or axes of that parameter."""

    def rule(program: Program, op: Operation, axes: list[int | None]) -> int | None:
        axis = _common(axes)
        along = op.params[name]
        taken = along if isinstance(along, (tuple, list)) else (along,)
        return None if axis in taken else axis

    return rule


def _dropping(name: str) -> _Rule:
    """Operations whose result lacks the axes of that parameter."""

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
    same = _shape(program, op.inputs[0]), _shape(program, op.outputs[0])
    if axis is None or same[0][axis] != same[1][axis]:
        return None
    return axis


def _concatenate(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    axis = _common(axes)
    return None if axis == op.params["dimension"] else axis


def _dot_general(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    contracting, batching = op.params["dimension_numbers"]
    places = []
    for operand, axis in enumerate(axes):
        if axis is None:
            continue
        if axis in batching[operand]:
            places.append(batching[operand].index(axis))
        elif axis in contracting[operand]:
            return None
        else:
            used = (*contracting[operand], *batching[operand])
            free = [
                i
                for i in range(len(_shape(program, op.inputs[operand])))
                if i not in used
            ]
            first = len(batching[0])
            if operand == 1:
                others = len(_shape(program, op.inputs[0]))
                first = others - len(contracting[0])
            places.append(first + free.index(axis))
    return _common(places)


def _gather(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    """A choice along other axes, the same in all examples or to each its own."""
    numbers, axis = op.params["dimension_numbers"], axes[0]
    if axis is None or axes[1] is not None:
        return None
    inner = numbers.operand_batching_dims
    if axis in inner:
        of_indices = numbers.start_indices_batching_dims[inner.index(axis)]
        result = range(len(_shape(program, op.outputs[0])))
        return [i for i in result if i not in numbers.offset_dims][of_indices]
    shape = _shape(program, op.inputs[0])
    kept = [
        i
        for i in range(len(shape))
        if i not in numbers.collapsed_slice_dims and i not in inner
    ]
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
    """Pooling: along the axis every window must hold one number."""
    axis, params = axes[0], op.params
    if axis is None or any(other is not None for other in axes[1:]):
        return None
    alone = (
        params["window_dimensions"][axis] == params["window_strides"][axis] == 1
        and params["padding"][axis] == (0, 0)
        and params.get("base_dilation", (1,) * (axis + 1))[axis] == 1
    )
    return axis if alone else None


def _custom(program: Program, op: Operation, axes: list[int | None]) -> int | None:
    """What a custom derivative rule is about, operation by operation."""
    closed = op.params.get("call_jaxpr") or op.params.get("fun_jaxpr")
    if closed is None or len(op.outputs) != 1:
        return None
    run = core.jaxpr_as_fun(closed)
    inner = trace(lambda *xs: run(*xs)[0], *(program.shapes[n] for n in op.inputs))
    try:
        return _of_result(inner, axes)
    except ExamplesMixError:
        return None


def _scan(program: Program, op: Operation, axes: list[int | None]) -> list[int | None]:
    """Of every result, where no turn of the loop lets the examples meet.

    What is carried from turn to turn has the same axis in all of them.
    """
    closed = op.params["jaxpr"]

    def kept(numbers: tuple[int, ...], avals: Sequence[Any]) -> int:
        """How many are not taken in turns, and have the axes that the body knows."""
        shapes = zip(numbers, avals, strict=True)
        return sum(_shape(program, number) == aval.shape for number, aval in shapes)

    ahead = kept(op.inputs, closed.in_avals)
    num_carry = kept(op.outputs, closed.out_avals)
    constants = ahead - num_carry
    if 0 in axes[ahead:]:
        raise ExamplesMixError("examples meet in scan, which takes them in turns")
    run, number = core.jaxpr_as_fun(closed), len(op.outputs)
    bodies = [
        trace(lambda *xs, i=i: run(*xs)[i], *closed.in_avals) for i in range(number)
    ]
    mine = axes[:ahead] + [a if a is None else a - 1 for a in axes[ahead:]]
    while True:
        found = [_of_result(body, mine) for body in bodies]
        carried = mine[constants:ahead]
        for place, (before, after) in enumerate(zip(carried, found, strict=False)):
            if None not in (before, after) and before != after:
                raise ExamplesMixError("examples meet in scan, whose turns move them")
            carried[place] = after if before is None else before
        if carried == mine[constants:ahead]:
            stacked = found[len(carried) :]
            return carried + [a if a is None else a + 1 for a in stacked]
        mine[constants:ahead] = carried


def _of_result(body: Program, axes: list[int | None]) -> int | None:
    """The axis in the result of a program of these operands."""
    known = {
        n: axis for n, axis in zip(body.inputs, axes, strict=True) if axis is not None
    }
    return follow_batch_axis(body, body.operations, known).get(body.output)


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
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _dropping("axes")),
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
        _along_others("axis"),
    ),
    "sort": _along_others("dimension"),
    "split": _along_others("axis"),
    "rev": _along_others("dimensions"),
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
    **dict.fromkeys(
        (
            "reduce_window",
            "reduce_window_max",
            "reduce_window_min",
            "reduce_window_sum",
        ),
        _window,
    ),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), _custom),
}
