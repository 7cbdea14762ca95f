"""Dense layers and convolutions of a program, whose examples have rows of their own."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._tracing.known_rows import UnknownUseError, is_sharded, shown_axes
from lejax._tracing.program import Operation, Program

# Of inner layers every example and draw has its own span. Beyond so many positions that
# costs more than it saves: `experiments/spans.py`.
FEW_POSITIONS = 4


class PerExampleLayer(NamedTuple):
    """A dense layer or a convolution, of which every example sees its own rows.

    Attributes:
        kernel: the place of its leaf among the leaves.
        bias: that of the leaf which is added to its product, if any.
        kernel_order: the axes of the kernel, the contracted ones first; the others in
            the order of the result.
        bias_views: the operations that spread the bias over examples and positions.
        inputs: the number of what meets the kernel.
        inputs_order: its axes, or those of its patches: that of the examples, those of
            the positions, and the contracted ones.
        patches: the parameters of the convolution, if it is one.
        product: the number of the product.
        product_order: its axes: that of the examples, those of the positions, others.
        result: the number of what the noise of the layer moves: the product, or its sum
            with the bias.
        result_order: its axes: that of the examples, those of the positions, others.
        positions: how many positions an example has, T.
        size: how many numbers a row has, n.
        others: how many axes the result has besides those of the rows.
    """

    kernel: int
    bias: int | None
    kernel_order: tuple[int, ...]
    bias_views: tuple[Operation, ...]
    inputs: int
    inputs_order: tuple[int, ...]
    patches: dict[str, Any] | None
    product: int
    product_order: tuple[int, ...]
    result: int
    result_order: tuple[int, ...]
    positions: int
    size: int
    others: int

    def rows(self, inputs: jax.Array) -> jax.Array:
        """The H_i, (B, T, n)."""
        if self.patches is not None:
            inputs = jax.lax.conv_general_dilated_patches(inputs, **self.patches)
        rows = jnp.transpose(inputs, self.inputs_order)
        return rows.reshape(len(rows), self.positions, -1)

    def laid_out(self, seen: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """What is seen (B, T, o) in the shape of the result."""
        order = self.result_order
        seen = seen.reshape(tuple(shape[axis] for axis in order))
        return jnp.transpose(seen, sorted(range(len(order)), key=order.__getitem__))


def end_of_views(
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


def layers_of(
    program: Program,
    leaf: int,
    views: tuple[Operation, ...],
    operation: Operation,
    number: int,
) -> list[PerExampleLayer]:
    """The product as a layer, by the axes along which its examples may lie."""
    if operation.name not in ("dot_general", "conv_general_dilated"):
        raise UnknownUseError(f"used by {operation.name}")
    if any(view.name in ("reshape", "broadcast_in_dim") for view in views):
        raise UnknownUseError("reshaped before it is used")
    # Of every axis of the kernel as it is used, that of the leaf.
    shown = tuple(range(len(program.shapes[number].shape)))
    for view in views:
        shown = shown_axes(program, view, shown) or shown
    operand = operation.inputs.index(number)
    inputs, (result,) = operation.inputs[1 - operand], operation.outputs
    for value in (inputs, result):
        if jnp.dtype(program.shapes[value].dtype) not in (jnp.float32, jnp.float64):
            raise UnknownUseError("its product is of half precision")
        if is_sharded(program.shapes[value]):
            raise UnknownUseError("sharded over an explicit mesh")
        if 0 in program.shapes[value].shape:
            raise UnknownUseError("its product is empty")
    read = _product if operation.name == "dot_general" else _convolution
    contracted, others, patches, free, own, of_result, of_others = read(
        program, operation, operand
    )
    shape = program.shapes[result].shape
    size = math.prod(program.shapes[number].shape[axis] for axis in contracted)
    found = []
    for example in range(len(free)):
        places = (example, *(i for i in range(len(free)) if i != example))
        positions = math.prod(shape[of_result[i]] for i in places[1:])
        order = (*(of_result[i] for i in places), *of_others)
        found.append(
            PerExampleLayer(
                kernel=leaf,
                bias=None,
                kernel_order=tuple(shown[axis] for axis in (*contracted, *others)),
                bias_views=(),
                inputs=inputs,
                inputs_order=(*(free[i] for i in places), *own),
                patches=patches,
                product=result,
                product_order=order,
                result=result,
                result_order=order,
                positions=positions,
                size=size,
                others=len(of_others),
            )
        )
    if not found:
        raise UnknownUseError("its inputs have no axis of examples")
    return found


class _Read(NamedTuple):
    """A product: which axes are which.

    Attributes:
        contracted, others: of the kernel.
        patches: of a convolution.
        free, own: of the inputs or patches: those of the rows, and in a row.
        of_result, of_others: the axes of the result for `free` and for `others`.
    """

    contracted: tuple[int, ...]
    others: tuple[int, ...]
    patches: dict[str, Any] | None
    free: tuple[int, ...]
    own: tuple[int, ...]
    of_result: tuple[int, ...]
    of_others: tuple[int, ...]


def _product(program: Program, operation: Operation, operand: int) -> _Read:
    contracting, batching = operation.params["dimension_numbers"]
    if batching[0]:
        raise UnknownUseError("used by dot_general with batch dimensions")

    def rest(place: int) -> tuple[int, ...]:
        axes = range(len(program.shapes[operation.inputs[place]].shape))
        return tuple(axis for axis in axes if axis not in contracting[place])

    free, others = rest(1 - operand), rest(operand)
    first, second = (others, free) if operand == 0 else (free, others)
    ends = tuple(range(len(first))), tuple(range(len(first), len(first) + len(second)))
    of_others, of_result = ends if operand == 0 else ends[::-1]
    own = tuple(contracting[1 - operand])
    contracted = tuple(contracting[operand])
    return _Read(contracted, others, None, free, own, of_result, of_others)


def _convolution(program: Program, operation: Operation, operand: int) -> _Read:
    params, numbers = operation.params, operation.params["dimension_numbers"]
    _, rhs, out = numbers
    if operand != 1 or params["feature_group_count"] * params["batch_group_count"] > 1:
        raise UnknownUseError("used by a convolution of groups")
    if list(rhs[2:]) != sorted(rhs[2:]):  # as patches are laid out
        raise UnknownUseError("used by a convolution along turned axes")
    kernel = program.shapes[operation.inputs[1]].shape
    patches = {
        "filter_shape": tuple(kernel[axis] for axis in rhs[2:]),
        "dimension_numbers": numbers,
        **{
            name: params[name]
            for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        },
    }
    # A patch has the channels first, as its numbers are laid out.
    contracted = (rhs[1], *rhs[2:])
    free = (out[0], *out[2:])
    return _Read(contracted, (rhs[0],), patches, free, (out[1],), free, (out[1],))


def with_bias(
    program: Program,
    sight: PerExampleLayer,
    numbers: tuple[int, ...],
    consumers: dict[int, list[Operation]],
    added: dict[int, tuple[int, tuple[Operation, ...]]],
) -> PerExampleLayer:
    """The layer with the bias that is added to its product before any other use."""
    result, order = sight.result, sight.result_order
    while len(after := consumers.get(result, [])) == 1:
        (operation,) = after
        if operation.name == "transpose":
            order = tuple(map(operation.params["permutation"].index, order))
            result = operation.outputs[0]
            continue
        if operation.outputs[0] in added:
            bias, views = added[operation.outputs[0]]
            # Those of the rows: the others are as many as the kernel's.
            rows = order[: len(order) - sight.others]
            if _spread(program, numbers[bias], views, result, rows):
                return sight._replace(
                    bias=bias,
                    bias_views=views,
                    result=operation.outputs[0],
                    result_order=order,
                )
        break
    return sight


def _spread(
    program: Program,
    number: int,
    views: tuple[Operation, ...],
    result: int,
    rows: tuple[int, ...],
) -> bool:
    """Whether the views give every row of the result the whole bias, once."""
    shape, size = program.shapes[result].shape, math.prod(program.shapes[number].shape)
    shapes = [program.shapes[view.outputs[0]].shape for view in views]
    once = tuple(1 if axis in rows else n for axis, n in enumerate(shape))
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
        and all(
            axis not in dimensions or before[dimensions.index(axis)] == 1
            for axis in rows
        )
    )
