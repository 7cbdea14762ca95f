"""Forward-only heat: every example has its own noise, at the output of each layer.

The heat of f = Σᵢ sᵢ depends only on the distribution of each sᵢ. If example i depends
on the noise ε of a layer only through hᵢᵀε, this product is N(0, τ|hᵢ|² I). So each
example can have its own draw:

    yᵢ = hᵢᵀ W + √τ |hᵢ| ξᵢ,   ∇_W E sᵢ = E (sᵢ - bᵢ) hᵢ ξᵢᵀ / (√τ |hᵢ|).

This takes one forward pass, and no noise in the shape of the weights. Node perturbation
is a related method.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lejax._internal.blocks import Blocks, layout_of
from lejax._internal.mesh_axes import member
from lejax._internal.random import Noise, standard_normals, translate
from lejax._internal.trees import signed, widen
from lejax._internal.types import PyTree
from lejax._spaces.control_variate import ControlVariate, Sums, make_control_variate
from lejax._spaces.example_outputs import ProgramValues
from lejax._spaces.reduced import reduced_space
from lejax._spaces.row_span import RowBasis, make_matrix_layer, products_of_noise
from lejax._spaces.space import Space
from lejax._tracing.layers import PerExampleLayer
from lejax._tracing.loss import Loss
from lejax._tracing.per_example import PerExampleLoss, read_per_example, without_sums
from lejax._tracing.program import Program, program_of


def per_example_space(
    loss: Loss,
    params: PyTree,
    data_axis_name: str | None = None,
    *,
    reduction: bool = True,
) -> Space:
    """The space of draws with noise for every example and layer, and other leaves.

    The first block is (B, ...), the noise of the examples in all layers. The other
    blocks are those of the leaves that are in no layer. `lift` takes blocks of all
    leaves. If no layer qualifies, the space is the reduced space, or without
    `reduction` the full space.
    """
    program = program_of(loss)
    leaves = jax.tree.leaves(params)
    per_example = read_per_example(program, len(leaves))
    per_example = per_example._replace(
        layers=_layers_through_sums_alone(program, per_example)
    )
    if not per_example.layers:
        return reduced_space(loss, params, data_axis_name, reduction=reduction)
    numbers = program.inputs[: len(leaves)]
    origin = widen(params)
    whole = layout_of(origin)
    in_layers = {
        leaf for layer in per_example.layers for leaf in (layer.kernel, layer.bias)
    }
    others = tuple(
        None if place in in_layers else leaf
        for place, leaf in enumerate(jax.tree.leaves(origin))
    )
    layout = layout_of(others)
    results = {layer.result: place for place, layer in enumerate(per_example.layers)}
    moving = [n for n, leaf in zip(numbers, others, strict=True) if leaf is not None]
    differ = program.dependents([*moving, *results])  # between draws
    once = [op for op in program.operations if differ.isdisjoint(op.inputs)]
    per_draw = [op for op in program.operations if not differ.isdisjoint(op.inputs)]
    values = program.constants | dict(zip(numbers, leaves, strict=True))
    program.run(once, values)
    # `values` also has results of layers without their noise, which are not fixed.
    fixed_values = {n: value for n, value in values.items() if n not in differ}
    layers = tuple(
        make_matrix_layer(layer, program, fixed_values) for layer in per_example.layers
    )
    num_examples = len(layers[0].zeros)
    sizes = [math.prod(layer.zeros.shape[1:]) for layer in layers]
    dtype = jnp.result_type(*(layer.zeros.dtype for layer in layers))
    zeros = jnp.zeros((num_examples, sum(sizes)), dtype), *layout.zeros(others)

    def noises(block: jax.Array) -> tuple[jax.Array, ...]:
        """The noise of every layer, (B, T, o)."""
        parts = jax.lax.split(block, sizes, axis=1)
        return tuple(
            part.reshape(layer.zeros.shape).astype(layer.zeros.dtype)
            for part, layer in zip(parts, layers, strict=True)
        )

    def tree(u: Blocks) -> tuple[tuple[jax.Array, ...], PyTree]:
        return noises(u[0]), layout.tree(u[1:])

    def evaluate(u: Blocks, sign: Any = None) -> ProgramValues:
        """The values of the program at the displacement ±u."""
        noise, moves = tree(u)
        at_u = dict(values)

        def add_noise(number: int) -> None:
            """Adds the noise of a layer, if this value is its result."""
            if number in results:
                place = results[number]
                layer, before = layers[place], at_u[number]
                basis = layer.fixed_basis or layer.basis_of(
                    at_u[per_example.layers[place].inputs]
                )
                # The sign is applied last, so that ±u share the product.
                products = products_of_noise(basis, noise[place])
                at_u[number] = before + signed(
                    per_example.layers[place].as_result(products, before.shape), sign
                )

        for number, leaf, move in zip(numbers, leaves, moves, strict=True):
            if move is not None:
                at_u[number] = translate(leaf, signed(move, sign))
        for number in results:
            if number in values:
                add_noise(number)
        for operation in per_draw:
            program.run([operation], at_u)
            for number in operation.outputs:
                add_noise(number)
        return ProgramValues(at_u, {})

    control_variate = make_control_variate(
        per_example,
        layers,
        program,
        fixed_values,
        whole,
        whole.zeros(origin),
        evaluate,
        zeros,
    )

    def noise(key: jax.Array, copies: int) -> Noise:
        # The key of an example is the same whichever member holds it. The noise of the
        # other leaves is the same for all members.
        first = member(data_axis_name) * num_examples
        places = 1 + first + jnp.arange(num_examples)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        own = jax.vmap(
            lambda key, zeros: standard_normals(key, (zeros,), copies, pooled=True)
        )(keys, zeros[0])
        if len(zeros) == 1:
            return own
        rest = standard_normals(
            jax.random.fold_in(key, 0), zeros[1:], copies, pooled=layout.pooled
        )
        return Noise(
            own.normals + rest.normals,
            None if own.words is None else own.words + (rest.words or ()),
        )

    def value_fn(u: Blocks, j: Any = 0, sign: Any = None) -> jax.Array:
        return control_variate.examine(u, sign)[0]

    return Space(
        origin=origin,
        zeros=zeros,
        noise=noise,
        value_fn=value_fn,
        value_and_grad=jax.value_and_grad(value_fn),
        tree=tree,
        lift=whole.tree,
        lower=whole.blocks,
        to_null_space=None,
        control_variate=control_variate,
        exact=loss.calls_outside,
    )


def _layers_through_sums_alone(
    program: Program, per_example: PerExampleLoss
) -> tuple[PerExampleLayer, ...]:
    """The layers on which the loss depends only through its sums over the examples."""
    for example_sum in per_example.sums:
        # The sum must reach the loss by one path only, along which it is linear.
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


def add_per_example(
    control_variate: ControlVariate,
    total: Sums,
    noises: tuple[jax.Array, ...],
    signs: jax.Array,
    coefficients: jax.Array,
    bases: tuple[RowBasis | None, ...],
) -> Sums:
    """`total` + Σ ±cᵢ Qᵢuᵢ over draws; `noises` has the u of each layer.

    The shape of u is (p, g, B, T, o). The columns of Qᵢ are an orthonormal basis of the
    span of Hᵢ. The `coefficients` c are (k, p, g, B), 0 for a draw that does not count.
    """
    blocks = total.blocks
    layers: list[Any] = list(total.layers)
    signed = signs.astype(coefficients.dtype)[..., None, None] * coefficients
    for place, layer in enumerate(control_variate.layers):
        noise, basis = noises[place], bases[place]
        if layer.fixed_basis is not None:
            scales = _over_norms(layer.fixed_basis, signed).sum(0).astype(noise.dtype)
            # As a matrix product this is several times faster than as a sum.
            found = jnp.einsum("pgb,pgbto->bto", scales, noise)
            layers[place] = layers[place] + found
            continue
        assert basis is not None
        scales = _over_norms(basis, signed).astype(noise.dtype)
        parts = control_variate.parts(layer, basis, noise * scales[..., None, None])
        blocks = control_variate.with_parts(blocks, parts)
    return Sums(blocks, tuple(layers))


def _over_norms(basis: RowBasis, coefficients: jax.Array) -> jax.Array:
    """Coefficients (..., B), divided by the norm of the rows; 0 if all rows are 0."""
    squares = basis.squared_norms
    norms = jnp.sqrt(jnp.where(squares > 0, squares, jnp.inf))
    return jnp.where(basis.finite, coefficients, 0) / norms.astype(coefficients.dtype)
