"""Splits a loss in two parts: one runs once, the other for every displacement.

The first part has the operations that depend on no parameter, and the products A W of
known rows with a leaf at x. A displacement u of the leaf adds A u to such a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._internal.types import PyTree
from lejax._tracing.known_rows import (
    LeafUse,
    RowMatrix,
    RowSource,
    RowValues,
    find_leaf_uses,
)
from lejax._tracing.program import Operation, Program


def leaf_uses_of(
    program: Program, params: PyTree, batches: PyTree, num_members: int = 1
) -> list[LeafUse | str]:
    """For every leaf of the parameters its uses, or why it is not reduced.

    The number of rows is that of all inner batches and of all `num_members` members
    that hold parts of the batch.
    """
    num_batches = 1 if batches is None else jnp.shape(jax.tree.leaves(batches)[0])[0]
    num_leaves = len(jax.tree.leaves(params))
    return find_leaf_uses(program, num_leaves, num_batches, num_members)


def worthwhile_use(
    program: Program, leaf_use: LeafUse | str, leaf: jax.Array, inner_batches: bool
) -> LeafUse | str:
    """The uses of a leaf, or why the loss is evaluated at the displaced leaf itself.

    A leaf with too many rows to be reduced still shares its products at x. This needs
    products only, no inner batches, and at least float32 for the leaf and the products.
    A row that is not finite then fails its samples, as for a reduced leaf.
    """
    if isinstance(leaf_use, str) or not leaf_use.why_whole:
        return leaf_use
    products = [
        program.shapes[operand.operation.outputs[0]].dtype
        for operand in leaf_use.operands
    ]
    multiplied = all(
        isinstance(operand.row_source, RowMatrix) for operand in leaf_use.operands
    )
    wide = all(jnp.finfo(dtype).bits >= 32 for dtype in (leaf.dtype, *products))
    shares = multiplied and wide and not inner_batches
    return leaf_use if shares else leaf_use.why_whole


class PartialProgram(NamedTuple):
    """A program whose first part runs once, at x, and the other for each displacement.

    Attributes:
        program: the whole program.
        leaves: the numbers of the parameters' leaves.
        leaf_uses: by number, the uses of the leaves that are used with known rows only.
        row_sources: the known rows.
        once: the operations that depend on no parameter, and the products at x.
        per_displacement: the other operations.
        handed_on: the numbers that `per_displacement` or the result takes from before.
    """

    program: Program
    leaves: tuple[int, ...]
    leaf_uses: dict[int, LeafUse]
    row_sources: tuple[RowSource, ...]
    once: tuple[Operation, ...]
    per_displacement: tuple[Operation, ...]
    handed_on: tuple[int, ...]


def split(program: Program, leaf_uses: Sequence[LeafUse | str]) -> PartialProgram:
    """Splits the program; a leaf with a reason is displaced itself."""
    leaves = program.inputs[: len(leaf_uses)]
    uses = {
        number: leaf_use
        for number, leaf_use in zip(leaves, leaf_uses, strict=True)
        if isinstance(leaf_use, LeafUse)
    }
    at_x = {
        operation.outputs[0]
        for use in uses.values()
        for operation in (*use.views, *(operand.operation for operand in use.operands))
    }
    on_params = program.dependents(leaves)
    once, per_displacement = [], []
    for operation in program.operations:
        independent = on_params.isdisjoint(operation.outputs)
        runs_once = independent or operation.outputs[0] in at_x
        (once if runs_once else per_displacement).append(operation)
    handed_on = {program.output}.union(*(step.inputs for step in per_displacement))
    handed_on.difference_update(*(step.outputs for step in per_displacement))
    handed_on.difference_update(number for number in leaves if number not in uses)
    row_sources = dict.fromkeys(
        operand.row_source for use in uses.values() for operand in use.operands
    )
    return PartialProgram(
        program,
        leaves,
        uses,
        tuple(row_sources),
        tuple(once),
        tuple(per_displacement),
        tuple(sorted(handed_on)),
    )


class Prepared(NamedTuple):
    """The results of the part that runs once, at x.

    Attributes:
        values: by number, the values that are the same for all inner batches.
        batch_values: the other values of `handed_on`, with the inner batches on a
            leading axis.
        rows: the known rows of every source; if they differ between inner batches,
            these are on a leading axis.
    """

    values: dict[int, Any]
    batch_values: dict[int, Any]
    rows: RowValues


def prepare(plan: PartialProgram, leaves: list[jax.Array], batches: PyTree) -> Prepared:
    """Runs `plan.once`, for every inner batch if `batches` is not None."""
    batch_inputs = plan.program.inputs[len(leaves) :]
    on_batch = plan.program.dependents(batch_inputs)
    for_all, for_each = [], []
    for operation in plan.once:
        differs = not on_batch.isdisjoint(operation.outputs)
        (for_each if differs else for_all).append(operation)
    values = plan.program.constants | dict(zip(plan.leaves, leaves, strict=True))
    plan.program.run(for_all, values)

    def rows(values: dict[int, Any], of_batch: bool) -> list[jax.Array]:
        return [
            source.rows(values[source.number])
            for source in plan.row_sources
            if (source.number in on_batch) == of_batch
        ]

    def run_for(batch: PyTree) -> tuple[dict[int, Any], list[jax.Array]]:
        own = values | dict(zip(batch_inputs, jax.tree.leaves(batch), strict=True))
        plan.program.run(for_each, own)
        handed_on = {n: own[n] for n in plan.handed_on if n in on_batch}
        return handed_on, rows(own, of_batch=True)

    batch_values, batch_rows = {}, []
    if batches is not None:
        # Not by `vmap`: one at a time, the loss draws the same random numbers as alone.
        batches = jax.tree.map(jnp.asarray, batches)
        batch_values, batch_rows = jax.lax.map(run_for, batches)
    in_order = sorted(plan.row_sources, key=lambda source: source.number in on_batch)
    all_rows = rows(values, of_batch=False) + batch_rows
    return Prepared(values, batch_values, dict(zip(in_order, all_rows, strict=True)))
