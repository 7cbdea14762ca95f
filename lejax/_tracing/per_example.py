"""Which part of a layer's noise each example of a batch can see, read from the program.

Where the loss is a sum of what the examples lose, and example i meets a kernel W only
in the product H_i W, it sees of a perturbation ε of W but H_iε. That is so where no
operation after the product lets the examples meet. H_i is one row, or one for each
position of a sequence or an image, then of fewer rows than W has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp

from lejax._tracing.batch_axis import ExamplesMixError, follow_batch_axis
from lejax._tracing.known_rows import UnknownUseError
from lejax._tracing.layers import (
    FEW_POSITIONS,
    PerExampleLayer,
    end_of_views,
    layers_of,
    with_bias,
)
from lejax._tracing.program import Operation, Program


class ExampleSum(NamedTuple):
    """A sum over examples, on the way to the loss.

    Attributes:
        operation: the sum itself.
        number: of what is summed.
        axes: along which.
        axis: that of the examples.
        factors: the numbers of known scalars that the sum is multiplied with, each with
            the exponent 1 or -1.
        sign: 1 or -1.
    """

    operation: Operation
    number: int
    axes: tuple[int, ...]
    axis: int
    factors: tuple[tuple[int, int], ...]
    sign: int


class PerExampleLoss(NamedTuple):
    """What is known of the examples of a loss.

    Attributes:
        totals: the sums over the same examples, which the loss adds up.
        layers: the layers whose noise they see apart.
        reasons: for every leaf why it is in none of them, empty where it is.
    """

    totals: tuple[ExampleSum, ...]
    layers: tuple[PerExampleLayer, ...]
    reasons: tuple[str, ...]


def read_per_example(program: Program, leaves: int) -> PerExampleLoss:
    """The layers among the first `leaves` inputs whose noise the examples see apart."""
    numbers = program.inputs[:leaves]
    if why := program.in_one_piece():
        return PerExampleLoss((), (), (why,) * leaves)
    sums = list(_sums(program, program.output, program.dependents(numbers)))
    found = [_apart(program, total, numbers) for total in sums]
    if not found:
        return PerExampleLoss((), (), ("the loss is no sum over examples",) * leaves)
    best = max(found, key=lambda sights: len(sights.layers))
    if not best.layers:
        return best
    (first,) = best.totals
    others = (
        _of_same_examples(program, total, first, best.layers)
        for total, mine in zip(sums, found, strict=True)
        if mine is not best
    )
    return best._replace(totals=(first, *filter(None, others)))


def without_sums(program: Program, sights: PerExampleLoss) -> Program:
    """What the loss is beside the sums over its examples."""
    sums = {total.operation.outputs for total in sights.totals}
    others = (step for step in program.operations if step.outputs not in sums)
    return program._replace(operations=tuple(others))


def _sums(program: Program, number: int, unknown: set[int]) -> Iterator[ExampleSum]:
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
            axes = operation.params["axes"]
            yield ExampleSum(operation, inputs[0], axes, -1, factors, sign)
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


def _apart(
    program: Program, total: ExampleSum, numbers: tuple[int, ...]
) -> PerExampleLoss:
    """The layers that the summands see by example."""
    consumers: dict[int, list[Operation]] = {}
    for operation in program.operations:
        for number in dict.fromkeys(operation.inputs):
            consumers.setdefault(number, []).append(operation)
    reasons: dict[int, str] = {}
    ends: dict[int, tuple[tuple[Operation, ...], Operation, int]] = {}
    for leaf, number in enumerate(numbers):
        try:
            ends[leaf] = end_of_views(program, number, consumers)
        except UnknownUseError as reason:
            reasons[leaf] = str(reason)
    added = {
        operation.outputs[0]: (leaf, views)
        for leaf, (views, operation, _) in ends.items()
        if operation.name == "add" and views
    }
    before = _ancestors(program, total.number)
    turning = program.dependents(numbers)
    layers: dict[int, tuple[PerExampleLayer, int]] = {}
    for leaf, (views, operation, number) in ends.items():
        try:
            candidates = layers_of(program, leaf, views, operation, number)
        except UnknownUseError as reason:
            reasons[leaf] = str(reason)
            continue
        # The examples may lie along any axis that is not contracted: the first will do.
        for sight in candidates:
            try:
                sight = with_bias(program, sight, numbers, consumers, added)
                axis = _followed(program, total, before, sight)
                if 1 < sight.positions >= sight.size:
                    raise UnknownUseError(
                        f"the positions of an example span its {sight.size} inputs"
                    )
                if sight.positions > FEW_POSITIONS and sight.inputs in turning:
                    raise UnknownUseError(
                        f"spans of {sight.positions} positions, for every draw, would "
                        "cost more than they save"
                    )
                layers[leaf] = sight, axis
                reasons.pop(leaf, None)
                break
            except (UnknownUseError, ExamplesMixError) as reason:
                reasons.setdefault(leaf, str(reason))
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
    return PerExampleLoss(
        (total._replace(axis=axis),),
        tuple(sight for sight, _ in layers.values()),
        tuple(
            reasons.get(leaf, "the loss does not use it")
            for leaf in range(len(numbers))
        ),
    )


def _of_same_examples(
    program: Program,
    total: ExampleSum,
    first: ExampleSum,
    layers: tuple[PerExampleLayer, ...],
) -> ExampleSum | None:
    """Another sum, if the layers that reach it are seen apart there as well."""
    before = _ancestors(program, total.number)
    reached = [sight for sight in layers if sight.result in before]
    try:
        axes = {_followed(program, total, before, sight) for sight in reached}
    except (UnknownUseError, ExamplesMixError):
        return None
    size = program.shapes[first.number].shape[first.axis]
    for axis in axes if len(axes) == 1 else ():
        if program.shapes[total.number].shape[axis] == size:
            return total._replace(axis=axis)
    return None


def _followed(
    program: Program, total: ExampleSum, before: set[int], sight: PerExampleLayer
) -> int:
    """The axis of the examples of a layer in what is summed."""
    steps = [step for step in program.operations if step.outputs[0] in before]
    start = {sight.result: sight.result_order[0]}
    axis = follow_batch_axis(program, steps, start).get(total.number)
    if axis is None or axis not in total.axes:
        raise UnknownUseError("the sum of the loss is not over its examples")
    return axis


def _ancestors(program: Program, number: int) -> set[int]:
    found = {number}
    for operation in reversed(program.operations):
        if not found.isdisjoint(operation.outputs):
            found.update(operation.inputs)
            found.update(operation.outputs)
    return found


# Of a scalar, what changes no value.
_SAME_SCALAR = ("convert_element_type", "copy", "reshape", "squeeze", "pvary")
