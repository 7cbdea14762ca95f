"""Finds the layers whose noise affects each example only through its own rows.

Let the loss be a sum of per-example losses. If example i depends on a kernel W only
through a product Hᵢ W, it depends on a perturbation ε of W only through Hᵢ ε. This
holds if no operation after the product mixes the examples. Hᵢ has one row, or one for
each position of a sequence or an image. In the second case it must have fewer rows than
W.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp

from lejax._tracing.batch_axis import ExamplesMixError, follow_batch_axis
from lejax._tracing.layers import (
    FEW_POSITIONS,
    PerExampleLayer,
    candidate_layers,
    with_bias,
)
from lejax._tracing.program import Operation, Program
from lejax._tracing.views import UnknownUseError, follow_views


class ExampleSum(NamedTuple):
    """A sum over examples that the loss depends on linearly.

    Attributes:
        operation: the `reduce_sum`.
        summand: the number of its operand.
        axes: the axes that are summed over.
        example_axis: the one of these that is the batch axis; -1 until it is found.
        multipliers: the known scalar factors of the sum, by number, each with the
            exponent 1 or -1.
        sign: 1 or -1.
    """

    operation: Operation
    summand: int
    axes: tuple[int, ...]
    example_axis: int
    multipliers: tuple[tuple[int, int], ...]
    sign: int


class PerExampleLoss(NamedTuple):
    """A loss as a sum over examples.

    Attributes:
        sums: the sums over the same examples that the loss adds up.
        layers: the layers whose noise affects an example only through its own rows.
        reasons: for every leaf why it is in no such layer; empty if it is in one.
    """

    sums: tuple[ExampleSum, ...]
    layers: tuple[PerExampleLayer, ...]
    reasons: tuple[str, ...]


def read_per_example(program: Program, num_leaves: int) -> PerExampleLoss:
    """The loss as a sum over examples, with layers among its `num_leaves` leaves."""
    numbers = program.inputs[:num_leaves]
    if reason := program.why_not_in_parts():
        return PerExampleLoss((), (), (reason,) * num_leaves)
    sums = list(_linear_sums(program, program.output, program.dependents(numbers)))
    readings = [_layers_of_sum(program, example_sum, numbers) for example_sum in sums]
    if not readings:
        reason = "the loss is no sum over examples"
        return PerExampleLoss((), (), (reason,) * num_leaves)
    best = max(readings, key=lambda reading: len(reading.layers))
    if not best.layers:
        return best
    (first,) = best.sums
    others = (
        _sum_over_same_examples(program, example_sum, first, best.layers)
        for example_sum, reading in zip(sums, readings, strict=True)
        if reading is not best
    )
    return best._replace(sums=(first, *filter(None, others)))


def without_sums(program: Program, per_example: PerExampleLoss) -> Program:
    """The program without the sums over examples."""
    sums = {example_sum.operation.outputs for example_sum in per_example.sums}
    others = (step for step in program.operations if step.outputs not in sums)
    return program._replace(operations=tuple(others))


def _linear_sums(
    program: Program, number: int, on_params: set[int]
) -> Iterator[ExampleSum]:
    """The sums that a scalar depends on linearly, with known coefficients."""
    makers = {
        output: operation
        for operation in program.operations
        for output in operation.outputs
    }
    # Values still to be expanded, each with its multipliers and its sign.
    waiting: list[tuple[int, tuple[tuple[int, int], ...], int]] = [(number, (), 1)]
    while waiting:
        number, multipliers, sign = waiting.pop()
        operation = makers.get(number)
        if operation is None or number not in on_params:
            continue
        name, inputs = operation.name, operation.inputs
        if name == "reduce_sum":
            axes = operation.params["axes"]
            yield ExampleSum(operation, inputs[0], axes, -1, multipliers, sign)
        elif any(program.shapes[i].shape for i in inputs):
            continue
        elif not jnp.issubdtype(program.shapes[number].dtype, jnp.floating):
            continue  # rounding to integers and dividing them are not linear
        elif name in ("add", "sub", "add_any"):
            waiting.append((inputs[0], multipliers, sign))
            waiting.append((inputs[1], multipliers, -sign if name == "sub" else sign))
        elif name in ("mul", "div"):
            for operand, other in ((0, 1), (1, 0)):
                if inputs[other] not in on_params and (name == "mul" or operand == 0):
                    multiplier = (inputs[other], 1 if name == "mul" else -1)
                    waiting.append((inputs[operand], (*multipliers, multiplier), sign))
        elif name == "neg":
            waiting.append((inputs[0], multipliers, -sign))
        elif name in _SAME_SCALAR:
            waiting.append((inputs[0], multipliers, sign))


def _layers_of_sum(
    program: Program, example_sum: ExampleSum, numbers: tuple[int, ...]
) -> PerExampleLoss:
    """The layers whose noise affects a summand only through its example's rows."""
    consumers: dict[int, list[Operation]] = {}
    for operation in program.operations:
        for number in dict.fromkeys(operation.inputs):
            consumers.setdefault(number, []).append(operation)
    reasons: dict[int, str] = {}
    uses: dict[int, tuple[tuple[Operation, ...], Operation, int]] = {}
    for leaf, number in enumerate(numbers):
        try:
            uses[leaf] = follow_views(program, number, consumers)
        except UnknownUseError as error:
            reasons[leaf] = str(error)
    bias_sums = {
        operation.outputs[0]: (leaf, views)
        for leaf, (views, operation, _) in uses.items()
        if operation.name == "add" and views
    }
    before = _ancestors(program, example_sum.summand)
    on_params = program.dependents(numbers)
    layers: dict[int, tuple[PerExampleLayer, int]] = {}
    for leaf, (views, operation, number) in uses.items():
        try:
            candidates = candidate_layers(program, leaf, views, operation, number)
        except UnknownUseError as error:
            reasons[leaf] = str(error)
            continue
        # The batch axis is the first free axis along which entries do not mix.
        for layer in candidates:
            try:
                layer = with_bias(program, layer, numbers, consumers, bias_sums)
                axis = _example_axis(program, example_sum, before, layer)
                if 1 < layer.num_positions >= layer.row_length:
                    raise UnknownUseError(
                        f"the positions of an example span its {layer.row_length} "
                        "inputs"
                    )
                if layer.num_positions > FEW_POSITIONS and layer.inputs in on_params:
                    raise UnknownUseError(
                        f"spans of {layer.num_positions} positions, for every draw, "
                        "would cost more than they save"
                    )
                layers[leaf] = layer, axis
                reasons.pop(leaf, None)
                break
            except (UnknownUseError, ExamplesMixError) as error:
                reasons.setdefault(leaf, str(error))
    # All layers must have the same batch axis in the sum: that of most layers.
    axes = [axis for _, axis in layers.values()]
    axis = max(set(axes), key=axes.count, default=0)
    for leaf in [leaf for leaf, (_, other) in layers.items() if other != axis]:
        reasons[leaf] = "its rows are not the examples"
        del layers[leaf]
    for layer, _ in layers.values():
        reasons[layer.kernel] = ""
        if layer.bias is not None:
            reasons[layer.bias] = ""
    return PerExampleLoss(
        (example_sum._replace(example_axis=axis),),
        tuple(layer for layer, _ in layers.values()),
        tuple(
            reasons.get(leaf, "the loss does not use it")
            for leaf in range(len(numbers))
        ),
    )


def _sum_over_same_examples(
    program: Program,
    example_sum: ExampleSum,
    first: ExampleSum,
    layers: tuple[PerExampleLayer, ...],
) -> ExampleSum | None:
    """Another sum, if no example mixes between its layers and its summand."""
    before = _ancestors(program, example_sum.summand)
    on_path = [layer for layer in layers if layer.result in before]
    try:
        axes = {_example_axis(program, example_sum, before, each) for each in on_path}
    except (UnknownUseError, ExamplesMixError):
        return None
    size = program.shapes[first.summand].shape[first.example_axis]
    for axis in axes if len(axes) == 1 else ():
        if program.shapes[example_sum.summand].shape[axis] == size:
            return example_sum._replace(example_axis=axis)
    return None


def _example_axis(
    program: Program, example_sum: ExampleSum, before: set[int], layer: PerExampleLayer
) -> int:
    """The batch axis of a layer in the summand.

    `before` has the values that the summand is computed from.
    """
    steps = [step for step in program.operations if step.outputs[0] in before]
    start = {layer.result: layer.result_order[0]}
    axis = follow_batch_axis(program, steps, start).get(example_sum.summand)
    if axis is None or axis not in example_sum.axes:
        raise UnknownUseError("the sum of the loss is not over its examples")
    return axis


def _ancestors(program: Program, number: int) -> set[int]:
    """This value, and all values that it is computed from."""
    ancestors = {number}
    for operation in reversed(program.operations):
        if not ancestors.isdisjoint(operation.outputs):
            ancestors.update(operation.inputs)
            ancestors.update(operation.outputs)
    return ancestors


# Operations that do not change the value of a scalar.
_SAME_SCALAR = ("convert_element_type", "copy", "reshape", "squeeze", "pvary")
