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

from lejax._axes import member
from lejax._credit import (
    ByLayer,
    ByLeaf,
    Credit,
    Sums,
    along_examples,
    make_credit,
    met_rows,
    over_draws,
    squared_norms,
    transposed,
)
from lejax._objective import Coordinates
from lejax._program import Program
from lejax._reduction import find_reduced, reduced_space
from lejax._sights import Sight, Sights, find_sights
from lejax._trees import (
    PyTree,
    scaled,
    standard_normals,
    translate,
    widen,
    zeros_alike,
)


def forward_space(
    value_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    inner_batches: bool,
    data_axis_name: str | None = None,
) -> Coordinates:
    """A draw is what every example sees of each layer, and the leaves in no layer.

    `lift` takes the displacements of the leaves, those in layers and the others. Where
    no layer is seen by example these are the coordinates of the reduction.
    """
    program, found = find_reduced(value_fn, params, batch, inner_batches)
    sights = find_sights(program, len(found))
    layers = _of_the_sum_alone(program, sights)
    if not layers:
        return reduced_space(value_fn, params, batch, inner_batches, data_axis_name)
    leaves, structure = jax.tree.flatten(params)
    numbers = program.inputs[: len(leaves)]
    origin = widen(params)
    of_leaves = tuple(jax.tree.leaves(zeros_alike(origin)))
    sights = sights._replace(layers=layers)
    in_layers = {leaf for sight in layers for leaf in (sight.kernel, sight.bias)}
    rest = tuple(
        None if place in in_layers else zero for place, zero in enumerate(of_leaves)
    )
    shapes = [program.shapes[sight.result] for sight in layers]
    zeros = tuple(jnp.zeros(a.shape, a.dtype) for a in shapes), rest

    results = {sight.result: place for place, sight in enumerate(layers)}
    moving = [n for n, zero in zip(numbers, rest, strict=True) if zero is not None]
    # What differs between draws.
    unknown = program.dependents([*moving, *results])
    once = [op for op in program.operations if unknown.isdisjoint(op.inputs)]
    every = [op for op in program.operations if not unknown.isdisjoint(op.inputs)]
    values = program.constants | dict(zip(numbers, leaves, strict=True))
    program.run(once, values)

    def at(displacement: PyTree, sign: float = 1.0) -> dict[int, Any]:
        """All values of the program there, by number."""
        noises, moves = displacement
        seen = dict(values)

        def disturb(number: int) -> None:
            if number in results:
                place = results[number]
                sight, rows = layers[place], seen[layers[place].inputs]
                squares = squared_norms(
                    rows, sight.inputs_axis, has_bias=sight.bias is not None
                )
                noise = noises[place] * jnp.asarray(sign, noises[place].dtype)
                sizes = along_examples(sight.axis, jnp.sqrt(squares), noise.ndim)
                seen[number] = seen[number] + noise * sizes.astype(noise.dtype)

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
        return seen

    # Results are known as well, before their noise.
    fixed = {n: value for n, value in values.items() if n not in unknown}
    by_example = make_credit(sights, program, fixed, {}, of_leaves, at, zeros)

    def noise(key: jax.Array, copies: int) -> PyTree:
        # The examples of every member are its own; the other leaves are common to all.
        own = jax.random.fold_in(jax.random.fold_in(key, 1), member(data_axis_name))
        layers = standard_normals(own, zeros[0], copies)
        if not jax.tree.leaves(rest):
            return layers, rest
        return layers, standard_normals(jax.random.fold_in(key, 0), rest, copies)

    def loss(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> jax.Array:
        return by_example.examine(displacement, sign=sign)[0]

    def lift(of_each: tuple[ByLeaf, ByLeaf]) -> PyTree:
        both = zip(*of_each, strict=True)
        return structure.unflatten(b if a is None else a for a, b in both)

    return Coordinates(
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


def _of_the_sum_alone(program: Program, sights: Sights) -> tuple[Sight, ...]:
    """The layers that the loss depends on by what is summed over the examples alone."""
    if sights.total is None:
        return ()
    of_sum = sights.total.operation
    others = [operation for operation in program.operations if operation is not of_sum]
    # From the sum to the loss there must be one way, along which it is linear.
    number = of_sum.outputs[0]
    while number != program.output:
        after = [operation for operation in others if number in operation.inputs]
        if len(after) != 1 or after[0].inputs.count(number) != 1:
            return ()
        (number,) = after[0].outputs
    without = program._replace(operations=tuple(others))
    return tuple(
        sight
        for sight in sights.layers
        if program.output not in without.dependents([sight.result])
    )


def forward_sums(
    credit: Credit,
    noises: tuple[jax.Array, ...],
    signs: jax.Array,
    coefficients: jax.Array,
    inputs: ByLayer,
) -> Sums:
    """Σ ±cᵢ hᵢ uᵢᵀ/|hᵢ| over all draws, of which `noises` are the u (p, g, ...).

    The `coefficients` are (k, p, g, B), 0 where a draw does not count.
    """
    leaves: list[jax.Array | None] = [None] * len(credit.zeros)
    of_seen: list[jax.Array | None] = []
    signed = signs.astype(coefficients.dtype).reshape(-1, 1, 1, 1) * coefficients
    for layer, of_layer, noise in zip(credit.layers, inputs, noises, strict=True):
        rows, squares, finite = met_rows(layer, of_layer)
        norms = jnp.sqrt(jnp.where(squares > 0, squares, jnp.inf))
        factor = jnp.where(finite, signed, 0) / norms.astype(signed.dtype)
        if of_layer is None:
            of_seen.append(over_draws(layer.axis, factor.sum(0), noise))
            continue
        of_seen.append(None)
        weighted = noise * along_examples(layer.axis, factor, noise.ndim + 1).astype(
            noise.dtype
        )
        point = tuple(credit.zeros[leaf] for leaf in layer.leaves)
        sums = transposed(layer, rows, weighted, point)
        for leaf, found in zip(layer.leaves, sums, strict=True):
            leaves[leaf] = found
    return Sums(tuple(leaves), tuple(of_seen))
