"""The results of one evaluation of a loss for every example of the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lejax._internal.types import PyTree
from lejax._spaces.row_span import MatrixLayer, RowBasis
from lejax._tracing.layers import PerExampleLayer
from lejax._tracing.per_example import ExampleSum, PerExampleLoss
from lejax._tracing.program import Program

# One entry for every layer.
ByLayer: TypeAlias = tuple[jax.Array | None, ...]


class ProgramValues(NamedTuple):
    """The values of a program at a displacement ±u.

    Attributes:
        values: by number, the values.
        products: by number, the change of a product with known rows by u itself, with
            the sign 1.
    """

    values: dict[int, Any]
    products: dict[int, Any]


class ExampleOutputs(NamedTuple):
    """The per-example results of one evaluation of the loss.

    Attributes:
        losses: the sᵢ, (B,).
        rest_of_loss: the loss without the sᵢ; None if it is not requested.
        bases: for every layer the basis of the rows Hᵢ; None if no displacement
            changes them.
        products: for every layer the hᵢᵀu, (B, o), if T = 1 and no displacement changes
            the rows; None if they are not computed.
    """

    losses: jax.Array
    rest_of_loss: jax.Array | None
    bases: tuple[RowBasis | None, ...]
    products: ByLayer


def examine_examples(
    per_example: PerExampleLoss,
    matrix_layers: tuple[MatrixLayer, ...],
    program: Program,
    fixed_values: dict[int, Any],
    dtype: Any,
    evaluate: Callable[..., ProgramValues],
) -> Callable[..., tuple[jax.Array, ExampleOutputs]]:
    """Makes `examine(u, sign=None, rest=False)`: the loss at ±u and `ExampleOutputs`.

    The arguments are those of `make_control_variate`; losses have the given dtype.
    """

    def summands(example_sum: ExampleSum, values: dict[int, Any]) -> jax.Array:
        """The contribution of each example to the loss through one sum."""
        others = tuple(
            axis for axis in example_sum.axes if axis != example_sum.example_axis
        )
        multiplier = jnp.asarray(example_sum.sign, dtype)
        for number, exponent in example_sum.multipliers:
            value = jnp.asarray(fixed_values[number], dtype)
            multiplier = multiplier * value**exponent
        return values[example_sum.summand].sum(others).astype(dtype) * multiplier

    sums = {example_sum.operation.outputs[0] for example_sum in per_example.sums}
    behind = program.dependents(sums) - sums
    after = [step for step in program.operations if not behind.isdisjoint(step.outputs)]

    def rest_of_loss(values: dict[int, Any]) -> jax.Array:
        """The loss with all sums set to 0: finite even if an example's loss is not."""
        without = dict(values)
        for number in sums:
            without[number] = jnp.zeros_like(values[number])
        program.run(after, without)
        return jnp.asarray(without[program.output]).astype(dtype)

    def examine(
        displacement: PyTree, sign: Any = None, rest: bool = False
    ) -> tuple[jax.Array, ExampleOutputs]:
        values, products = evaluate(displacement, sign=sign)
        losses = functools.reduce(
            jnp.add,
            (summands(example_sum, values) for example_sum in per_example.sums),
        )
        layers = list(zip(per_example.layers, matrix_layers, strict=True))
        bases = tuple(
            matrix.basis_of(values[layer.inputs])
            if matrix.fixed_basis is None
            else None
            for layer, matrix in layers
        )
        value = jnp.asarray(values[program.output]).astype(dtype)
        row_products = tuple(
            _row_products(layer, matrix, products.get(layer.product))
            for layer, matrix in layers
        )
        beside = rest_of_loss(values) if rest else None
        return value, ExampleOutputs(losses, beside, bases, row_products)

    return examine


def _row_products(
    layer: PerExampleLayer, matrix: MatrixLayer, product: jax.Array | None
) -> jax.Array | None:
    """The hᵢᵀu, (B, o), from the change of the product of a layer with fixed rows."""
    basis = matrix.fixed_basis
    if product is None or basis is None or basis.root is not None:
        return None
    ordered = jnp.transpose(product, layer.product_order)
    products = ordered.reshape(len(matrix.zeros), -1)
    return jnp.where(basis.finite[:, None], products, 0)
