"""Forward-only heat: every example has its own draw, in what it sees of each layer.

The heat of f = Σᵢ sᵢ needs the law of each sᵢ alone. Where example i sees the noise of
a layer only in hᵢᵀε, that part is N(0, τ|hᵢ|² I), and may be drawn apart for each:

    yᵢ = hᵢᵀ W + √τ |hᵢ| ξᵢ,   ∇_W E sᵢ = E (sᵢ - bᵢ) hᵢ ξᵢᵀ / (√τ |hᵢ|),

whatever the others draw: one pass forwards, no noise in the shape of the weights. The
idea's relative is node perturbation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lejax._internal.mesh_axes import member
from lejax._internal.random import standard_normals, translate
from lejax._internal.trees import (
    PyTree,
    scaled,
    widen,
    zeros_alike,
)
from lejax._spaces.control_variate import (
    ByLeaf,
    ControlVariate,
    ProgramValues,
    Sums,
    make_control_variate,
)
from lejax._spaces.reduced import space_maker
from lejax._spaces.row_span import (
    RowBasis,
    matrix_layer,
    of_sign,
    plus,
    products_of_noise,
    transposed,
)
from lejax._spaces.space import Space
from lejax._tracing.layers import PerExampleLayer
from lejax._tracing.partial_eval import find_reduced
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
    """A draw is what every example sees of each layer, and the leaves in no layer.

    `lift` takes the displacements of the leaves, those in layers and the others. Where
    no layer is seen by example these are the coordinates of the reduction, if any.
    """
    program, found = find_reduced(value_fn, params, batch, inner_batches)
    sights = read_per_example(program, len(found))
    sights = sights._replace(layers=_of_the_sums_alone(program, sights))
    if not sights.layers:
        make = space_maker(reduction)
        return make(value_fn, params, batch, inner_batches, data_axis_name)
    leaves, structure = jax.tree.flatten(params)
    numbers = program.inputs[: len(leaves)]
    origin = widen(params)
    of_leaves = tuple(jax.tree.leaves(zeros_alike(origin)))
    in_layers = {leaf for sight in sights.layers for leaf in (sight.kernel, sight.bias)}
    rest = tuple(
        None if place in in_layers else zero for place, zero in enumerate(of_leaves)
    )
    results = {sight.result: place for place, sight in enumerate(sights.layers)}
    moving = [n for n, zero in zip(numbers, rest, strict=True) if zero is not None]
    # What differs between draws.
    unknown = program.dependents([*moving, *results])
    once = [op for op in program.operations if unknown.isdisjoint(op.inputs)]
    every = [op for op in program.operations if not unknown.isdisjoint(op.inputs)]
    values = program.constants | dict(zip(numbers, leaves, strict=True))
    program.run(once, values)
    # Results are known as well, before their noise.
    fixed = {n: value for n, value in values.items() if n not in unknown}
    layers = tuple(matrix_layer(sight, program, fixed) for sight in sights.layers)
    zeros = tuple(layer.zeros for layer in layers), rest
    examples = len(layers[0].zeros)

    def at(displacement: PyTree, sign: float = 1.0) -> ProgramValues:
        """All values of the program there, by number."""
        noises, moves = displacement
        seen = dict(values)

        def disturb(number: int) -> None:
            if number in results:
                place = results[number]
                layer, noise, before = layers[place], noises[place], seen[number]
                met = layer.known or layer.span(seen[sights.layers[place].inputs])
                part = products_of_noise(met, noise * jnp.asarray(sign, noise.dtype))
                part = sights.layers[place].laid_out(part, before.shape)
                seen[number] = before + part

        for number, leaf, move in zip(numbers, leaves, moves, strict=True):
            if move is not None:
                seen[number] = translate(leaf, scaled(move, sign))
        for number in results:
            if number in values:
                disturb(number)
        for operation in every:
            program.run([operation], seen)
            for number in operation.outputs:
                disturb(number)
        return ProgramValues(seen, {})

    by_example = make_control_variate(
        sights, layers, program, fixed, of_leaves, at, zeros
    )

    def noise(key: jax.Array, copies: int) -> PyTree:
        # By example, whoever holds it; the other leaves are common to all.
        first = member(data_axis_name) * examples
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, 1), first + jnp.arange(examples)
        )
        of_layers = jax.vmap(
            lambda key, zeros: standard_normals(key, zeros, copies), out_axes=1
        )(keys, zeros[0])
        if not jax.tree.leaves(rest):
            return of_layers, rest
        return of_layers, standard_normals(jax.random.fold_in(key, 0), rest, copies)

    def loss(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> jax.Array:
        return by_example.examine(displacement, sign=sign)[0]

    def lift(of_each: tuple[ByLeaf, ByLeaf]) -> PyTree:
        both = zip(*of_each, strict=True)
        return structure.unflatten(b if a is None else a for a, b in both)

    return Space(
        origin=origin,
        zeros=zeros,
        noise=noise,
        value_fn=loss,
        value_and_grad=jax.value_and_grad(loss),
        lift=lift,
        lower=lambda displacement: displacement,
        outside=None,
        credit=by_example,
    )


def _of_the_sums_alone(
    program: Program, sights: PerExampleLoss
) -> tuple[PerExampleLayer, ...]:
    """The layers that the loss depends on by what is summed over the examples alone."""
    for total in sights.totals:
        # From the sum to the loss there must be one way, along which it is linear.
        number = total.operation.outputs[0]
        while number != program.output:
            after = [step for step in program.operations if number in step.inputs]
            if len(after) != 1 or after[0].inputs.count(number) != 1:
                return ()
            (number,) = after[0].outputs
    beside = without_sums(program, sights)
    return tuple(
        sight
        for sight in sights.layers
        if program.output not in beside.dependents([sight.result])
    )


def per_example_sums(
    credit: ControlVariate,
    noises: tuple[jax.Array, ...],
    signs: jax.Array,
    coefficients: jax.Array,
    spans: tuple[RowBasis | None, ...],
) -> Sums:
    """Σ ±cᵢ Qᵢuᵢ over all draws, of which `noises` are the u (p, g, B, T, o).

    The columns of Qᵢ are the orthonormal rows that span Hᵢ; the `coefficients` c are
    (k, p, g, B), 0 where a draw does not count.
    """
    leaves: list[jax.Array | None] = [None] * len(credit.zeros)
    of_seen: list[jax.Array | None] = []
    signed = signs.astype(coefficients.dtype).reshape(-1, 1, 1, 1) * coefficients
    for layer, own, noise in zip(credit.layers, spans, noises, strict=True):
        if layer.known is not None:
            factor = _by_norm(layer.known, signed).sum(0)
            # As a product of matrices, which is several times faster than a sum.
            seen = jnp.einsum("pgb,pgbto->bto", factor.astype(noise.dtype), noise)
            of_seen.append(seen)
            continue
        of_seen.append(None)
        assert own is not None
        point = tuple(credit.zeros[leaf] for leaf in layer.leaves)
        for k, mine in enumerate(signed):
            met = of_sign(own, k)
            factor = _by_norm(met, mine).astype(noise.dtype)
            parts = transposed(layer, met, noise * factor[..., None, None], point)
            for leaf, found in zip(layer.leaves, parts, strict=True):
                leaves[leaf] = plus(leaves[leaf], found)
    return Sums(tuple(leaves), tuple(of_seen))


def _by_norm(met: RowBasis, coefficients: jax.Array) -> jax.Array:
    """Coefficients (..., B) by the norm of the rows; 0 where there are none."""
    norms = jnp.sqrt(jnp.where(met.squares > 0, met.squares, jnp.inf))
    return jnp.where(met.finite, coefficients, 0) / norms.astype(coefficients.dtype)
