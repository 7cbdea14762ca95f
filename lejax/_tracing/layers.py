"""Finds dense layers and convolutions in a program, with the rows of every example."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._tracing.dot_general import ProductAxes, read_dot_general
from lejax._tracing.program import Operation, Program
from lejax._tracing.views import UnknownUseError, axes_of_view, is_sharded

# An inner layer needs a basis of the rows of every example in every draw. With more
# positions than this, it costs more than it saves: `experiments/benchmarks/spans.py`.
FEW_POSITIONS = 4


class PerExampleLayer(NamedTuple):
    """A dense layer or a convolution in which each example has rows of its own.

    Attributes:
        kernel: the place of the kernel among the leaves.
        bias: the place of the bias that is added to the product, if any.
        kernel_order: the axes of the kernel: the contracted ones, then the others in
            the order of the result.
        bias_views: the operations that broadcast the bias to examples and positions.
        inputs: the number of the other operand of the product.
        inputs_order: the axes of `inputs`, or of its patches: the examples, the
            positions, the contracted axes.
        patches: the parameters of a convolution's patches; None for a dense layer.
        product: the number of the product.
        product_order: the axes of the product: the examples, the positions, the
            features.
        result: the number of the product with its bias, or of the product alone.
        result_order: the axes of the result: the examples, the positions, the features.
        num_positions: T, the number of rows of an example.
        row_length: n, the length of a row.
        num_feature_axes: how many axes of the result are features.
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
    num_positions: int
    row_length: int
    num_feature_axes: int

    def rows(self, inputs: jax.Array, dtype: Any = None) -> jax.Array:
        """The rows Hᵢ of all examples, (B, T, n), cast to `dtype` if it is given."""
        inputs = jnp.asarray(inputs, dtype)
        if self.patches is not None:
            inputs = jax.lax.conv_general_dilated_patches(inputs, **self.patches)
        rows = jnp.transpose(inputs, self.inputs_order)
        return rows.reshape(len(rows), self.num_positions, -1)

    def as_result(self, products: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """`products` (B, T, o) in the layout of the result, which has this shape."""
        order = self.result_order
        products = products.reshape(tuple(shape[axis] for axis in order))
        return jnp.transpose(products, sorted(range(len(order)), key=order.__getitem__))


def candidate_layers(
    program: Program,
    leaf: int,
    views: tuple[Operation, ...],
    operation: Operation,
    number: int,
) -> list[PerExampleLayer]:
    """The operation as a layer, once for each axis that may be the batch axis.

    `number` is the operand that is the kernel: the leaf after its `views`.
    """
    if operation.name not in ("dot_general", "conv_general_dilated"):
        raise UnknownUseError(f"used by {operation.name}")
    if any(view.name in ("reshape", "broadcast_in_dim") for view in views):
        raise UnknownUseError("reshaped before it is used")
    # The axis of the leaf for every axis of the operand.
    leaf_axes = tuple(range(len(program.shapes[number].shape)))
    for view in views:
        leaf_axes = axes_of_view(program, view, leaf_axes) or leaf_axes
    index = operation.inputs.index(number)
    inputs, (result,) = operation.inputs[1 - index], operation.outputs
    for value in (inputs, result):
        dtype = jnp.dtype(program.shapes[value].dtype)
        exact = value == inputs and not jnp.issubdtype(dtype, jnp.inexact)
        if not exact and dtype not in (jnp.float32, jnp.float64):
            raise UnknownUseError(f"its product has dtype {dtype}")
        if is_sharded(program.shapes[value]):
            raise UnknownUseError("sharded over an explicit mesh")
        if 0 in program.shapes[value].shape:
            raise UnknownUseError("its product is empty")
    patches = None
    if operation.name == "dot_general":
        axes = read_dot_general(program, operation, index)
    else:
        axes, patches = _read_convolution(program, operation, index)
    shape, kernel_shape = program.shapes[result].shape, program.shapes[number].shape
    kernel_axes = (*axes.kernel_contracted, *axes.kernel_free)
    num_free = len(axes.rows_free)
    layers = []
    for examples in range(num_free):
        places = (examples, *(i for i in range(num_free) if i != examples))
        of_rows = tuple(axes.result_of_rows[i] for i in places)
        order = (*of_rows, *axes.result_of_kernel)
        layers.append(
            PerExampleLayer(
                kernel=leaf,
                bias=None,
                kernel_order=tuple(leaf_axes[axis] for axis in kernel_axes),
                bias_views=(),
                inputs=inputs,
                inputs_order=(
                    *(axes.rows_free[i] for i in places),
                    *axes.rows_contracted,
                ),
                patches=patches,
                product=result,
                product_order=order,
                result=result,
                result_order=order,
                num_positions=math.prod(shape[axis] for axis in of_rows[1:]),
                row_length=math.prod(kernel_shape[i] for i in axes.kernel_contracted),
                num_feature_axes=len(axes.result_of_kernel),
            )
        )
    if not layers:
        raise UnknownUseError("its inputs have no axis of examples")
    return layers


def _read_convolution(
    program: Program, operation: Operation, kernel: int
) -> tuple[ProductAxes, dict[str, Any]]:
    """A convolution as a product of patches and kernel, and the patches' parameters."""
    params, numbers = operation.params, operation.params["dimension_numbers"]
    _, rhs, out = numbers
    if kernel != 1 or params["feature_group_count"] * params["batch_group_count"] > 1:
        raise UnknownUseError("used by a grouped convolution")
    if list(rhs[2:]) != sorted(rhs[2:]):  # the order that patches have
        raise UnknownUseError("used by a convolution with permuted axes")
    shape = program.shapes[operation.inputs[1]].shape
    patches = {
        "filter_shape": tuple(shape[axis] for axis in rhs[2:]),
        "dimension_numbers": numbers,
        **{
            name: params[name]
            for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        },
    }
    # The patches have the layout of the result. The entries of a patch are on one axis,
    # channels first.
    free = (out[0], *out[2:])
    axes = ProductAxes(
        kernel_contracted=(rhs[1], *rhs[2:]),
        kernel_free=(rhs[0],),
        rows_contracted=(out[1],),
        rows_free=free,
        result_of_kernel=(out[1],),
        result_of_rows=free,
    )
    return axes, patches


def with_bias(
    program: Program,
    layer: PerExampleLayer,
    numbers: tuple[int, ...],
    consumers: dict[int, list[Operation]],
    bias_sums: dict[int, tuple[int, tuple[Operation, ...]]],
) -> PerExampleLayer:
    """The layer with the bias that is added to its product before any other use.

    `bias_sums` maps the number of a sum to the leaf that is added, and its views.
    """
    result, order = layer.result, layer.result_order
    while len(after := consumers.get(result, [])) == 1:
        (operation,) = after
        if operation.name == "transpose":
            order = tuple(map(operation.params["permutation"].index, order))
            result = operation.outputs[0]
            continue
        if operation.outputs[0] in bias_sums:
            bias, views = bias_sums[operation.outputs[0]]
            row_axes = order[: len(order) - layer.num_feature_axes]
            if _added_to_every_row(program, numbers[bias], views, result, row_axes):
                return layer._replace(
                    bias=bias,
                    bias_views=views,
                    result=operation.outputs[0],
                    result_order=order,
                )
        break
    return layer


def _added_to_every_row(
    program: Program,
    bias: int,
    views: tuple[Operation, ...],
    result: int,
    row_axes: tuple[int, ...],
) -> bool:
    """Whether the views add the whole bias, once, to every row of the result."""
    shape, size = program.shapes[result].shape, math.prod(program.shapes[bias].shape)
    view_shapes = [program.shapes[view.outputs[0]].shape for view in views]
    one_row = tuple(1 if axis in row_axes else n for axis, n in enumerate(shape))
    if math.prod(one_row) != size or any(view.name == "transpose" for view in views):
        return False
    if view_shapes[-1] == one_row:  # the addition itself broadcasts it
        return all(math.prod(view_shape) == size for view_shape in view_shapes)
    last = views[-1]
    dimensions = last.params.get("broadcast_dimensions", ())
    before = program.shapes[last.inputs[0]].shape
    return (
        view_shapes[-1] == shape
        and last.name == "broadcast_in_dim"
        and all(math.prod(view_shape) == size for view_shape in view_shapes[:-1])
        and all(
            axis not in dimensions or before[dimensions.index(axis)] == 1
            for axis in row_axes
        )
    )
