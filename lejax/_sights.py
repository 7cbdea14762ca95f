"""Which part of a layer's noise each example of a batch can see, read from the program.

Where the loss is a sum of what the examples lose, and example i meets a kernel W only
in the product h_i W, it sees of a perturbation ε of W but hᵢε. That is so where no
operation after the product lets the examples meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp

from lejax._apart import MeetingError, follow
from lejax._program import Operation, Program
from lejax._uses import UnknownUseError, shown_axes


class Sum(NamedTuple):
    """A sum over examples, on the way to the loss.

    Attributes:
        operation: the sum itself.
        number: of what is summed.
        axes: along which.
        factors: the numbers of known scalars that the sum is multiplied with, each with
            the exponent 1 or -1.
        sign: 1 or -1.
    """

    operation: Operation
    number: int
    axes: tuple[int, ...]
    factors: tuple[tuple[int, int], ...]
    sign: int


class Sight(NamedTuple):
    """A dense layer, whose rows are the examples.

    Attributes:
        kernel: the place of its leaf among the leaves.
        bias: that of the leaf which is added to its product, if any.
        operation: the product.
        operand: the place of the kernel in it.
        kernel_views: the operations that only show the kernel otherwise.
        bias_views: those that spread the bias over the examples.
        result_views: those of the product before the bias is added.
        inputs: the number of the h_i.
        inputs_axis: the axis of the examples in them.
        axis: that in the result.
        result: the number of what the noise of the layer moves: the product, or its sum
            with the bias.
    """

    kernel: int
    bias: int | None
    operation: Operation
    operand: int
    kernel_views: tuple[Operation, ...]
    bias_views: tuple[Operation, ...]
    result_views: tuple[Operation, ...]
    inputs: int
    inputs_axis: int
    axis: int
    result: int


class Sights(NamedTuple):
    """What is known of the examples of a loss.

    Attributes:
        total: the sum over the examples, None where there is none.
        axis: that of the examples in what is summed.
        layers: the layers whose noise they see apart.
        reasons: for every leaf why it is in none of them, empty where it is.
    """

    total: Sum | None
    axis: int
    layers: tuple[Sight, ...]
    reasons: tuple[str, ...]


def find_sights(program: Program, leaves: int) -> Sights:
    """The layers among the first `leaves` inputs whose noise the examples see apart."""
    numbers = program.inputs[:leaves]
    if why := program.in_one_piece():
        return Sights(None, 0, (), (why,) * leaves)
    found = [
        _apart(program, total, numbers)
        for total in _sums(program, program.output, program.dependents(numbers))
    ]
    if not found:
        return Sights(None, 0, (), ("the loss is no sum over examples",) * leaves)
    return max(found, key=lambda sights: len(sights.layers))


def _sums(program: Program, number: int, unknown: set[int]) -> Iterator[Sum]:
    """The sums that the value is made of, linearly, by known scalars."""
    makers = {
        o: operation for operation in program.operations for o in operation.outputs
    }
    waiting: list[tuple[int, tuple[tuple[int, int], ...], int]] = [(number, (), 1)]
    while waiting:
        number, factors, sign = waiting.pop()
        operation = makers.get(number)
        if operation is None or number not in unknown:
            continue
        name, inputs = operation.name, operation.inputs
        if name == "reduce_sum":
            yield Sum(operation, inputs[0], operation.params["axes"], factors, sign)
        elif any(program.shapes[i].shape for i in inputs):
            continue
        elif not jnp.issubdtype(program.shapes[number].dtype, jnp.floating):
            continue  # rounded to integers, or divided as such: not linear
        elif name in ("add", "sub", "add_any"):
            waiting.append((inputs[0], factors, sign))
            waiting.append((inputs[1], factors, -sign if name == "sub" else sign))
        elif name in ("mul", "div"):
            for mine, other in ((0, 1), (1, 0)):
                if inputs[other] not in unknown and (name == "mul" or mine == 0):
                    exponent = 1 if name == "mul" else -1
                    factor = (inputs[other], exponent)
                    waiting.append((inputs[mine], (*factors, factor), sign))
        elif name == "neg":
            waiting.append((inputs[0], factors, -sign))
        elif name in _SAME_SCALAR:
            waiting.append((inputs[0], factors, sign))


def _apart(program: Program, total: Sum, numbers: tuple[int, ...]) -> Sights:
    """The layers that the summands see by example."""
    consumers: dict[int, list[Operation]] = {}
    for operation in program.operations:
        for number in dict.fromkeys(operation.inputs):
            consumers.setdefault(number, []).append(operation)
    reasons: dict[int, str] = {}
    ends: dict[int, tuple[tuple[Operation, ...], Operation, int]] = {}
    for leaf, number in enumerate(numbers):
        try:
            ends[leaf] = _end(program, number, consumers)
        except UnknownUseError as reason:
            reasons[leaf] = str(reason)
    added = {
        operation.outputs[0]: (leaf, views)
        for leaf, (views, operation, _) in ends.items()
        if operation.name == "add" and views
    }
    before = _ancestors(program, total.number)
    layers: dict[int, tuple[Sight, int]] = {}
    for leaf, (views, operation, number) in ends.items():
        try:
            sight = _layer(program, leaf, views, operation, number)
            sight = _with_bias(program, sight, numbers, consumers, added)
            steps = [step for step in program.operations if step.outputs[0] in before]
            axis = follow(program, steps, {sight.result: sight.axis}).get(total.number)
            if axis is None or axis not in total.axes:
                raise UnknownUseError("the sum of the loss is not over its examples")
            layers[leaf] = sight, axis
        except (UnknownUseError, MeetingError) as reason:
            reasons[leaf] = str(reason)
    # All of them must mean the same examples.
    axes = [axis for _, axis in layers.values()]
    axis = max(set(axes), key=axes.count, default=0)
    for leaf in [leaf for leaf, (_, other) in layers.items() if other != axis]:
        reasons[leaf] = "its rows are not the examples"
        del layers[leaf]
    for sight, _ in layers.values():
        reasons[sight.kernel] = ""
        if sight.bias is not None:
            reasons[sight.bias] = ""
    return Sights(
        total,
        axis,
        tuple(sight for sight, _ in layers.values()),
        tuple(
            reasons.get(leaf, "the loss does not use it")
            for leaf in range(len(numbers))
        ),
    )


def _end(
    program: Program, number: int, consumers: dict[int, list[Operation]]
) -> tuple[tuple[Operation, ...], Operation, int]:
    """The views of a leaf, the one operation that then uses it, and as which number."""
    if jnp.finfo(program.shapes[number].dtype).bits < 32:
        raise UnknownUseError("its points are rounded at random")
    views: list[Operation] = []
    while True:
        after = consumers.get(number, [])
        if not after:
            raise UnknownUseError("the loss does not use it")
        if len(after) > 1 or after[0].inputs.count(number) > 1:
            raise UnknownUseError("used more than once")
        operation = after[0]
        axes = tuple(range(len(program.shapes[number].shape)))
        if operation.name not in ("reshape", "broadcast_in_dim") and (
            shown_axes(program, operation, axes) is None
        ):
            return tuple(views), operation, number
        views.append(operation)
        number = operation.outputs[0]


def _layer(
    program: Program,
    leaf: int,
    views: tuple[Operation, ...],
    operation: Operation,
    number: int,
) -> Sight:
    """The product as a layer with one row for every example."""
    if operation.name != "dot_general":
        raise UnknownUseError(f"used by {operation.name}")
    if any(view.name in ("reshape", "broadcast_in_dim") for view in views):
        raise UnknownUseError("reshaped before it is used")
    contracting, batching = operation.params["dimension_numbers"]
    operand = operation.inputs.index(number)
    inputs = operation.inputs[1 - operand]
    shape = program.shapes[inputs].shape
    free = [i for i in range(len(shape)) if i not in contracting[1 - operand]]
    if batching[0]:
        raise UnknownUseError("used by dot_general with batch dimensions")
    if len(free) != 1:
        raise UnknownUseError(f"its inputs have {len(free)} axes besides their own")
    for value in (inputs, *operation.outputs):
        if jnp.dtype(program.shapes[value].dtype) not in (jnp.float32, jnp.float64):
            raise UnknownUseError("its product is of half precision")
    others = len(program.shapes[number].shape) - len(contracting[operand])
    axis = others if operand == 0 else 0
    return Sight(
        leaf,
        None,
        operation,
        operand,
        views,
        (),
        (),
        inputs,
        free[0],
        axis,
        *operation.outputs,
    )


def _with_bias(
    program: Program,
    sight: Sight,
    numbers: tuple[int, ...],
    consumers: dict[int, list[Operation]],
    added: dict[int, tuple[int, tuple[Operation, ...]]],
) -> Sight:
    """The layer with the bias that is added to its product before any other use."""
    result, axis = sight.operation.outputs[0], sight.axis
    ways: list[Operation] = []
    while len(after := consumers.get(result, [])) == 1:
        (operation,) = after
        if operation.name == "transpose":
            axis = operation.params["permutation"].index(axis)
            ways.append(operation)
            result = operation.outputs[0]
            continue
        if operation.outputs[0] in added:
            bias, views = added[operation.outputs[0]]
            if _spread(program, numbers[bias], views, result, axis):
                return sight._replace(
                    bias=bias,
                    bias_views=views,
                    result_views=tuple(ways),
                    axis=axis,
                    result=operation.outputs[0],
                )
        break
    return sight


def _spread(
    program: Program,
    number: int,
    views: tuple[Operation, ...],
    result: int,
    axis: int,
) -> bool:
    """Whether the views give every example of the result the whole bias, once."""
    shape, size = program.shapes[result].shape, math.prod(program.shapes[number].shape)
    shapes = [program.shapes[view.outputs[0]].shape for view in views]
    once = (*shape[:axis], 1, *shape[axis + 1 :])
    if math.prod(once) != size or any(view.name == "transpose" for view in views):
        return False
    if shapes[-1] == once:  # repeated by the addition itself
        return all(math.prod(grown) == size for grown in shapes)
    last = views[-1]
    dimensions = last.params.get("broadcast_dimensions", ())
    before = program.shapes[last.inputs[0]].shape
    return (
        shapes[-1] == shape
        and last.name == "broadcast_in_dim"
        and all(math.prod(grown) == size for grown in shapes[:-1])
        and (axis not in dimensions or before[dimensions.index(axis)] == 1)
    )


def _ancestors(program: Program, number: int) -> set[int]:
    found = {number}
    for operation in reversed(program.operations):
        if not found.isdisjoint(operation.outputs):
            found.update(operation.inputs)
            found.update(operation.outputs)
    return found


# Of a scalar, what changes no value.
_SAME_SCALAR = ("convert_element_type", "copy", "reshape", "squeeze", "pvary")
