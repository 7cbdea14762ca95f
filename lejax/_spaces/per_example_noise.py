"""Forward-only heat: every example has its own noise, at the output of each layer.

The heat of f = Σᵢ sᵢ needs only the law of each sᵢ. If example i depends on the noise ε
of a layer only through hᵢᵀε, that product is N(0, τ|hᵢ|² I), and each example can have
its own draw:

    yᵢ = hᵢᵀ W + √τ |hᵢ| ξᵢ,   ∇_W E sᵢ = E (sᵢ - bᵢ) hᵢ ξᵢᵀ / (√τ |hᵢ|).

This takes one forward pass, and no noise in the shape of the weights. Node perturbation
is a related method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lejax._internal.mesh_axes import member
from lejax._internal.random import standard_normals, translate
from lejax._internal.trees import scaled, widen, zeros_alike
from lejax._internal.types import PyTree
from lejax._spaces.control_variate import (
    ByLeaf,
    ControlVariate,
    Sums,
    make_control_variate,
)
from lejax._spaces.example_outputs import ProgramValues
from lejax._spaces.reduced import space_maker
from lejax._spaces.row_span import (
    RowBasis,
    add_to,
    basis_of_sign,
    make_matrix_layer,
    products_of_noise,
    transposed_product,
)
from lejax._spaces.space import Space
from lejax._tracing.layers import PerExampleLayer
from lejax._tracing.partial_eval import trace_leaf_uses
from lejax._tracing.per_example import PerExampleLoss, read_per_example, without_sums
from lejax._tracing.program import Program


def per_example_space(
    value_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    inner_batches: bool,
    data_axis_name: str | None = None,
    *,
    reduction: bool = True,
) -> Space:
    """A draw has noise for every example and layer, and for every leaf in no layer.

    `lift` takes the displacements of the leaves, those in layers and the others. If no
    layer qualifies, the space is the reduced space, or with `reduction` off the full
    space.
    """
    program, leaf_uses = trace_leaf_uses(value_fn, params, batch, inner_batches)
    per_example = read_per_example(program, len(leaf_uses))
    per_example = per_example._replace(
        layers=_layers_through_sums_alone(program, per_example)
    )
    if not per_example.layers:
        make = space_maker(reduction)
        return make(value_fn, params, batch, inner_batches, data_axis_name)
    leaves, structure = jax.tree.flatten(params)
    numbers = program.inputs[: len(leaves)]
    origin = widen(params)
    leaf_zeros = tuple(jax.tree.leaves(zeros_alike(origin)))
    in_layers = {
        leaf for layer in per_example.layers for leaf in (layer.kernel, layer.bias)
    }
    rest = tuple(
        None if place in in_layers else zero for place, zero in enumerate(leaf_zeros)
    )
    results = {layer.result: place for place, layer in enumerate(per_example.layers)}
    moving = [n for n, zero in zip(numbers, rest, strict=True) if zero is not None]
    differ = program.dependents([*moving, *results])  # between draws
    once = [op for op in program.operations if differ.isdisjoint(op.inputs)]
    per_draw = [op for op in program.operations if not differ.isdisjoint(op.inputs)]
    values = program.constants | dict(zip(numbers, leaves, strict=True))
    program.run(once, values)
    # Results without their noise are among `values`, too.
    fixed_values = {n: value for n, value in values.items() if n not in differ}
    layers = tuple(
        make_matrix_layer(layer, program, fixed_values) for layer in per_example.layers
    )
    zeros = tuple(layer.zeros for layer in layers), rest
    num_examples = len(layers[0].zeros)

    def evaluate(displacement: PyTree, sign: float = 1.0) -> ProgramValues:
        """The values of the program at a displacement, by number."""
        noises, moves = displacement
        at_u = dict(values)

        def add_noise(number: int) -> None:
            """Adds the noise of a layer, if this value is its result."""
            if number in results:
                place = results[number]
                layer, noise, before = layers[place], noises[place], at_u[number]
                basis = layer.fixed_basis or layer.basis_of(
                    at_u[per_example.layers[place].inputs]
                )
                signed = noise * jnp.asarray(sign, noise.dtype)
                products = products_of_noise(basis, signed)
                at_u[number] = before + per_example.layers[place].as_result(
                    products, before.shape
                )

        for number, leaf, move in zip(numbers, leaves, moves, strict=True):
            if move is not None:
                at_u[number] = translate(leaf, scaled(move, sign))
        for number in results:
            if number in values:
                add_noise(number)
        for operation in per_draw:
            program.run([operation], at_u)
            for number in operation.outputs:
                add_noise(number)
        return ProgramValues(at_u, {})

    control_variate = make_control_variate(
        per_example, layers, program, fixed_values, leaf_zeros, evaluate, zeros
    )

    def noise(key: jax.Array, copies: int) -> PyTree:
        # A key for each example, whichever member holds it. Other leaves are common.
        first = member(data_axis_name) * num_examples
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, 1), first + jnp.arange(num_examples)
        )
        noises = jax.vmap(
            lambda key, zeros: standard_normals(key, zeros, copies), out_axes=1
        )(keys, zeros[0])
        if not jax.tree.leaves(rest):
            return noises, rest
        return noises, standard_normals(jax.random.fold_in(key, 0), rest, copies)

    def loss(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> jax.Array:
        return control_variate.examine(displacement, sign=sign)[0]

    def lift(displacements: tuple[ByLeaf, ByLeaf]) -> PyTree:
        pairs = zip(*displacements, strict=True)
        return structure.unflatten(
            in_rest if in_layer is None else in_layer for in_layer, in_rest in pairs
        )

    return Space(
        origin=origin,
        zeros=zeros,
        noise=noise,
        value_fn=loss,
        value_and_grad=jax.value_and_grad(loss),
        lift=lift,
        lower=lambda displacement: displacement,
        to_null_space=None,
        control_variate=control_variate,
    )


def _layers_through_sums_alone(
    program: Program, per_example: PerExampleLoss
) -> tuple[PerExampleLayer, ...]:
    """The layers on which the loss depends only through its sums over the examples."""
    for example_sum in per_example.sums:
        # There must be one path from the sum to the loss, along which it is linear.
        number = example_sum.operation.outputs[0]
        while number != program.output:
            after = [step for step in program.operations if number in step.inputs]
            if len(after) != 1 or after[0].inputs.count(number) != 1:
                return ()
            (number,) = after[0].outputs
    rest = without_sums(program, per_example)
    return tuple(
        layer
        for layer in per_example.layers
        if program.output not in rest.dependents([layer.result])
    )


def per_example_sums(
    control_variate: ControlVariate,
    noises: tuple[jax.Array, ...],
    signs: jax.Array,
    coefficients: jax.Array,
    bases: tuple[RowBasis | None, ...],
) -> Sums:
    """Σ ±cᵢ Qᵢuᵢ over all draws, of which `noises` are the u (p, g, B, T, o).

    The columns of Qᵢ are the orthonormal rows that span Hᵢ. The `coefficients` c are
    (k, p, g, B), 0 for a draw that does not count.
    """
    leaf_sums: list[jax.Array | None] = [None] * len(control_variate.zeros)
    layer_sums: list[jax.Array | None] = []
    signed = signs.astype(coefficients.dtype).reshape(-1, 1, 1, 1) * coefficients
    for layer, layer_bases, noise in zip(
        control_variate.layers, bases, noises, strict=True
    ):
        if layer.fixed_basis is not None:
            scales = _over_norms(layer.fixed_basis, signed).sum(0).astype(noise.dtype)
            # A product of matrices, which is several times faster than a sum.
            layer_sums.append(jnp.einsum("pgb,pgbto->bto", scales, noise))
            continue
        layer_sums.append(None)
        assert layer_bases is not None
        zeros = tuple(control_variate.zeros[leaf] for leaf in layer.leaves)
        for k, of_sign in enumerate(signed):
            basis = basis_of_sign(layer_bases, k)
            scales = _over_norms(basis, of_sign).astype(noise.dtype)
            vectors = noise * scales[..., None, None]
            parts = transposed_product(layer, basis, vectors, zeros)
            for leaf, part in zip(layer.leaves, parts, strict=True):
                leaf_sums[leaf] = add_to(leaf_sums[leaf], part)
    return Sums(tuple(leaf_sums), tuple(layer_sums))


def _over_norms(basis: RowBasis, coefficients: jax.Array) -> jax.Array:
    """Coefficients (..., B), divided by the norm of the rows; 0 if all rows are 0."""
    squares = basis.squared_norms
    norms = jnp.sqrt(jnp.where(squares > 0, squares, jnp.inf))
    return jnp.where(basis.finite, coefficients, 0) / norms.astype(coefficients.dtype)
