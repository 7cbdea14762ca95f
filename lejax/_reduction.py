"""The exact isometric reduction: drawing in the directions that the loss can see.

Where a loss meets a kernel W (n, h) only in products A W with known rows A (m, n),
m < n, it sees only U = QᵀW, with Aᵀ = Q R. A Gaussian is invariant under rotation: U
and the rest of W are independent under N(W, τI), so what is sampled in U is exact. At a
displacement u the product is (A W at x) + Rᵀ u; means, gradients and ends of chains are
lifted by Q. Rows of an embedding table are the same, with rows of the identity for A.

The idea's relative is the local reparameterisation trick: Kingma, Salimans and Welling,
*Variational dropout and the local reparameterization trick*.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._axes import members
from lejax._credit import make_credit
from lejax._directions import Directions, Rows, seen_from, selection, span
from lejax._layers import Sight
from lejax._objective import Coordinates, call, first_batch, full_space
from lejax._program import Operation, Program, trace
from lejax._sights import find_sights
from lejax._spans import Layer, make_layer
from lejax._trees import (
    PyTree,
    compute_dtype,
    scaled,
    standard_normals,
    translate,
    widen,
    zeros_alike,
)
from lejax._uses import Factor, Met, Selection, find_uses


class Split(NamedTuple):
    """A program whose operations run once, at x, or for every displacement.

    Attributes:
        program: of the loss.
        leaves: the numbers of the parameters' leaves.
        mets: of these, the ones that are met by known rows alone, and how.
        factors: the known rows.
        once: what no parameter changes, and the products at x.
        every: what is left.
        wanted: the numbers that `every`, or the result, takes from `once`.
    """

    program: Program
    leaves: tuple[int, ...]
    mets: dict[int, Met]
    factors: tuple[Factor, ...]
    once: tuple[Operation, ...]
    every: tuple[Operation, ...]
    wanted: tuple[int, ...]


class ReducedLeaf(NamedTuple):
    """A leaf in the coordinates of its directions."""

    met: Met
    shape: tuple[int, ...]
    directions: Directions

    def lift(self, u: jax.Array) -> jax.Array:
        """A displacement along the directions as one of the leaf."""
        order = self.met.order(len(self.shape))
        rows = self.directions.lift(u, self.met.size(self.shape))
        unfolded = rows.reshape(tuple(self.shape[i] for i in order))
        return jnp.transpose(unfolded, sorted(range(len(order)), key=order.__getitem__))

    def lower(self, leaf: jax.Array) -> jax.Array:
        """The displacement along the directions of one of the leaf."""
        folded = jnp.transpose(leaf, self.met.order(len(self.shape)))
        others = folded.shape[len(self.met.axes) :]
        rows = folded.reshape(self.met.size(self.shape), *others)
        return self.directions.lower(rows)

    def outside(self, leaf: jax.Array) -> jax.Array:
        """The part of a displacement of the leaf that no row sees."""
        return leaf - self.lift(self.lower(leaf))


def find_reduced(
    value_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    inner_batches: bool,
    parts: int = 1,
) -> tuple[Program, list[Met | str]]:
    """The program of the loss, and how it meets every leaf, or why that is unknown.

    The batch is one of so many `parts`, of which all rows count.
    """
    # A single batch is closed over, so that it may hold more than arrays.
    turns = (first_batch(batch),) if inner_batches else ()
    program = trace(
        lambda params, *turn: call(value_fn, params, turn[0] if turn else batch),
        params,
        *turns,
    )
    count = jnp.shape(jax.tree.leaves(batch)[0])[0] if inner_batches else 1
    return program, find_uses(program, len(jax.tree.leaves(params)), count, parts)


def split(program: Program, found: Sequence[Met | str]) -> Split:
    """What of a program needs to run but once."""
    leaves = program.inputs[: len(found)]
    mets = {
        number: met
        for number, met in zip(leaves, found, strict=True)
        if isinstance(met, Met)
    }
    at_origin = {
        operation.outputs[0]
        for met in mets.values()
        for operation in (*met.views, *(use.operation for use in met.uses))
    }
    unknown = program.dependents(leaves)
    once, every = [], []
    for operation in program.operations:
        known = unknown.isdisjoint(operation.outputs)
        alone = known or operation.outputs[0] in at_origin
        (once if alone else every).append(operation)
    wanted = {program.output}.union(*(operation.inputs for operation in every))
    wanted.difference_update(*(operation.outputs for operation in every))
    wanted.difference_update(number for number in leaves if number not in mets)
    factors = dict.fromkeys(use.factor for met in mets.values() for use in met.uses)
    return Split(
        program,
        leaves,
        mets,
        tuple(factors),
        tuple(once),
        tuple(every),
        tuple(sorted(wanted)),
    )


class Prepared(NamedTuple):
    """What was run once, at x.

    Attributes:
        values: by number; those that turn with the inner batches are not among them.
        in_turn: the wanted ones that do, on a leading axis.
        rows: the known rows of every factor, likewise.
    """

    values: dict[int, Any]
    in_turn: dict[int, Any]
    rows: Rows


def prepare(plan: Split, leaves: list[jax.Array], batches: PyTree) -> Prepared:
    """Run what is to run once, and for every inner batch; None where there are none."""
    turns = plan.program.inputs[len(leaves) :]
    turning = plan.program.dependents(turns)
    for_all, for_each = [], []
    for operation in plan.once:
        turns_too = not turning.isdisjoint(operation.outputs)
        (for_each if turns_too else for_all).append(operation)
    values = plan.program.constants | dict(zip(plan.leaves, leaves, strict=True))
    plan.program.run(for_all, values)

    def rows(values: dict[int, Any], turn: bool) -> list[jax.Array]:
        chosen = (f for f in plan.factors if (f.number in turning) == turn)
        return [factor.rows(values[factor.number]) for factor in chosen]

    def of_turn(turn: PyTree) -> tuple[dict[int, Any], list[jax.Array]]:
        mine = values | dict(zip(turns, jax.tree.leaves(turn), strict=True))
        plan.program.run(for_each, mine)
        wanted = {number: mine[number] for number in plan.wanted if number in turning}
        return wanted, rows(mine, turn=True)

    in_turn, turned = {}, []
    if batches is not None:
        # One after the other, as in the loss itself: random numbers stay the same.
        in_turn, turned = jax.lax.map(of_turn, jax.tree.map(jnp.asarray, batches))
    ordered = sorted(plan.factors, key=lambda factor: factor.number in turning)
    found = rows(values, turn=False) + turned
    return Prepared(values, in_turn, dict(zip(ordered, found, strict=True)))


def coordinates(reduction: bool, credit: bool = False) -> Callable[..., Coordinates]:
    """The maker of the coordinates that a sampler is asked to draw in."""
    if not (reduction or credit):
        return full_space
    return functools.partial(reduced_space, reduction=reduction, credit=credit)


def reduced_space(
    value_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    inner_batches: bool,
    data_axis_name: str | None = None,
    *,
    reduction: bool = True,
    credit: bool = False,
) -> Coordinates:
    """The coordinates that the loss can see on its batch, or on all inner batches.

    Without `reduction` they are the parameters' own. With `credit`, what the examples
    see goes with them where it is known.

    Where the members of an axis hold parts of the batch, the rows of all of them count:
    all must move the parameters in the same directions.
    """
    parts = members(data_axis_name)
    program, found = find_reduced(value_fn, params, batch, inner_batches, parts)
    if not reduction:
        found = ["turned off"] * len(found)
    sights = find_sights(program, len(found)) if credit else None
    if all(isinstance(met, str) for met in found) and not (sights and sights.layers):
        return full_space(value_fn, params, batch, inner_batches, data_axis_name)
    plan = split(program, found)
    leaves, structure = jax.tree.flatten(params)
    origin, dtype = widen(params), compute_dtype(params)
    turning = program.dependents(program.inputs[len(leaves) :])
    values, in_turn, rows = prepare(plan, leaves, batch if inner_batches else None)

    reduced_leaves: list[ReducedLeaf | None] = []
    coefficients: dict[tuple[int, Factor], jax.Array] = {}
    known: dict[Any, tuple[Directions, Rows]] = {}
    for number, leaf in zip(plan.leaves, jax.tree.leaves(origin), strict=True):
        met = plan.mets.get(number)
        if met is None:
            reduced_leaves.append(None)
            continue
        mine = {use.factor: rows[use.factor] for use in met.uses}
        size = met.size(leaf.shape)
        # Leaves that meet the same rows, the gates of a cell say, share directions.
        same = (*mine, size, leaf.dtype)
        if same not in known:
            indexed = any(isinstance(factor, Selection) for factor in mine)
            known[same] = (
                selection(mine, size, data_axis_name)
                if indexed
                else span(mine, size, leaf.dtype, data_axis_name)
            )
        directions, by_factor = known[same]
        reduced_leaves.append(ReducedLeaf(met, leaf.shape, directions))
        coefficients |= {(number, factor): c for factor, c in by_factor.items()}

    def mapped(
        reduced: Callable[[ReducedLeaf, Any], Any], whole: Callable[[Any], Any]
    ) -> Callable[[PyTree], PyTree]:
        """A function of trees, by whether a leaf is reduced or whole."""
        return lambda tree: structure.unflatten(
            whole(leaf) if part is None else reduced(part, leaf)
            for part, leaf in zip(reduced_leaves, jax.tree.leaves(tree), strict=True)
        )

    def at(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> dict[int, Any]:
        """All values of the program there, by number."""

        def at_turn(number: int, value: Any) -> Any:
            return value[j % value.shape[0]] if number in turning else value

        seen = dict(values)
        seen.update({n: at_turn(n, value) for n, value in in_turn.items()})
        moves = jax.tree.leaves(displacement)
        for number, leaf, u in zip(plan.leaves, leaves, moves, strict=True):
            if number not in plan.mets:
                seen[number] = translate(leaf, scaled(u, sign))
                continue
            for use in plan.mets[number].uses:
                coefficient = coefficients[number, use.factor]
                # The sign comes last, so that ±u share the product.
                change = seen_from(at_turn(use.factor.number, coefficient), u) * sign
                (result,) = use.operation.outputs
                at_origin = seen[result]
                change = jnp.transpose(change, use.order).reshape(at_origin.shape)
                seen[result] = translate(at_origin, change)
        program.run(plan.every, seen)
        return seen

    def loss(seen: dict[int, Any]) -> jax.Array:
        return jnp.asarray(seen[program.output]).astype(dtype)

    def displaced(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> jax.Array:
        return loss(at(displacement, j, sign))

    zeros = mapped(
        lambda part, leaf: jnp.zeros(part.met.reduced_shape(leaf.shape), leaf.dtype),
        lambda leaf: leaf,
    )(zeros_alike(origin))
    by_example = None
    if sights and sights.layers:
        # Products at x are known as well, but move with their leaves.
        unknown = program.dependents(plan.leaves)
        fixed = {n: value for n, value in values.items() if n not in unknown}

        def layer(sight: Sight) -> Layer:
            number = plan.leaves[sight.kernel]
            met = plan.mets.get(number)
            drawn = met and coefficients[number, met.uses[0].factor]
            return make_layer(sight, program, fixed, drawn)

        layers = tuple(map(layer, sights.layers))
        by_example = make_credit(sights, layers, program, fixed, zeros, at, zeros)
    mask = mapped(lambda part, u: part.directions.mask(u), lambda u: u)
    return Coordinates(
        origin=origin,
        zeros=zeros,
        noise=lambda key, n: jax.vmap(mask)(standard_normals(key, zeros, n)),
        value_fn=displaced,
        value_and_grad=jax.value_and_grad(displaced),
        lift=mapped(ReducedLeaf.lift, lambda u: u),
        lower=mapped(ReducedLeaf.lower, lambda u: u),
        outside=mapped(ReducedLeaf.outside, jnp.zeros_like),
        credit=by_example,
    )
