"""A loss in parts: what runs once, and what runs for every displacement.

Once: what no parameter changes, and the products of known rows with a leaf at x, to
which a displacement adds its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._internal.loss import call, first_batch
from lejax._internal.trees import PyTree
from lejax._tracing.known_rows import (
    LeafUse,
    RowMatrix,
    RowSource,
    RowValues,
    find_leaf_uses,
)
from lejax._tracing.program import Operation, Program, trace


def find_reduced(
    value_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    inner_batches: bool,
    parts: int = 1,
) -> tuple[Program, list[LeafUse | str]]:
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
    return program, find_leaf_uses(program, len(jax.tree.leaves(params)), count, parts)


def worth_it(
    program: Program, met: LeafUse | str, leaf: jax.Array, inner_batches: bool
) -> LeafUse | str:
    """How a leaf is met, or why its points are made as the loss is written.

    Of a leaf that keeps all its numbers the products at x are worth it where a batch
    does not turn, and nothing is rounded to half precision, the leaf or a product. A
    row that is not finite fails the samples that see it, as among few rows.
    """
    if isinstance(met, str) or not met.whole:
        return met
    products = [program.shapes[use.operation.outputs[0]].dtype for use in met.uses]
    multiplied = all(isinstance(use.factor, RowMatrix) for use in met.uses)
    wide = all(jnp.finfo(dtype).bits >= 32 for dtype in (leaf.dtype, *products))
    return met if multiplied and wide and not inner_batches else met.whole


class PartialProgram(NamedTuple):
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
    mets: dict[int, LeafUse]
    factors: tuple[RowSource, ...]
    once: tuple[Operation, ...]
    every: tuple[Operation, ...]
    wanted: tuple[int, ...]


def split(program: Program, found: Sequence[LeafUse | str]) -> PartialProgram:
    """What of a program needs to run but once."""
    leaves = program.inputs[: len(found)]
    mets = {
        number: met
        for number, met in zip(leaves, found, strict=True)
        if isinstance(met, LeafUse)
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
    return PartialProgram(
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
    rows: RowValues


def prepare(plan: PartialProgram, leaves: list[jax.Array], batches: PyTree) -> Prepared:
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
