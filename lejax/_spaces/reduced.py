"""The exact isometric reduction: drawing in the directions that the loss can see.

Where a loss meets a kernel W (n, h) only in products A W with known rows A (m, n),
m < n, it sees only U = QᵀW, with Aᵀ = Q R. A Gaussian is invariant under rotation: U
and the rest of W are independent under N(W, τI), so what is sampled in U is exact. At a
displacement u the product is (A W at x) + Rᵀ u; means, gradients and ends of chains are
lifted by Q. Rows of an embedding table are the same, with rows of the identity for A.
Where m ≥ n a product with a single batch is still (A W at x) + A u, which ±u share.

The idea's relative is the local reparameterisation trick: Kingma, Salimans and Welling,
*Variational dropout and the local reparameterization trick*.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._internal.mesh_axes import members
from lejax._internal.random import standard_normals, translate
from lejax._internal.trees import (
    PyTree,
    compute_dtype,
    scaled,
    widen,
    zeros_alike,
)
from lejax._spaces.basis import (
    Basis,
    RowValues,
    apply_rows,
    basis_of_gathers,
    basis_of_rows,
)
from lejax._spaces.control_variate import ProgramValues, make_control_variate
from lejax._spaces.row_span import MatrixLayer, matrix_layer
from lejax._spaces.space import Space, full_space
from lejax._tracing.known_rows import LeafUse, RowGather, RowSource
from lejax._tracing.layers import PerExampleLayer
from lejax._tracing.partial_eval import (
    find_reduced,
    prepare,
    split,
    worth_it,
)
from lejax._tracing.per_example import read_per_example


class ReducedLeaf(NamedTuple):
    """A leaf in the coordinates of its directions."""

    met: LeafUse
    shape: tuple[int, ...]
    directions: Basis

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


def space_maker(reduction: bool, credit: bool = False) -> Callable[..., Space]:
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
) -> Space:
    """The coordinates that the loss can see on its batch, or on all inner batches.

    Without `reduction` they are the parameters' own. With `credit`, what the examples
    see goes with them where it is known.

    Where the members of an axis hold parts of the batch, the rows of all of them count:
    all must move the parameters in the same directions.
    """
    parts = members(data_axis_name)
    program, found = find_reduced(value_fn, params, batch, inner_batches, parts)
    leaves, structure = jax.tree.flatten(params)
    found = [
        worth_it(program, met, leaf, inner_batches) if reduction else "turned off"
        for met, leaf in zip(found, leaves, strict=True)
    ]
    sights = read_per_example(program, len(found)) if credit else None
    if all(isinstance(met, str) for met in found) and not (sights and sights.layers):
        return full_space(value_fn, params, batch, inner_batches, data_axis_name)
    plan = split(program, found)
    origin, dtype = widen(params), compute_dtype(params)
    turning = program.dependents(program.inputs[len(leaves) :])
    values, in_turn, rows = prepare(plan, leaves, batch if inner_batches else None)

    reduced_leaves: list[ReducedLeaf | None] = []
    coefficients: dict[tuple[int, RowSource], jax.Array] = {}
    known: dict[Any, tuple[Basis, RowValues]] = {}
    for number, leaf in zip(plan.leaves, jax.tree.leaves(origin), strict=True):
        met = plan.mets.get(number)
        if met is None or met.whole:
            reduced_leaves.append(None)
            continue
        mine = {use.factor: rows[use.factor] for use in met.uses}
        size = met.size(leaf.shape)
        # Leaves that meet the same rows, the gates of a cell say, share directions.
        same = (*mine, size, leaf.dtype)
        if same not in known:
            indexed = any(isinstance(factor, RowGather) for factor in mine)
            known[same] = (
                basis_of_gathers(mine, size, data_axis_name)
                if indexed
                else basis_of_rows(mine, size, leaf.dtype, data_axis_name)
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

    def at_turn(number: int, value: Any, j: Any) -> Any:
        return value[j % value.shape[0]] if number in turning else value

    def added(number: int, leaf: jax.Array, u: jax.Array, j: Any) -> dict[int, Any]:
        """What u adds to the products of a leaf, by their numbers."""
        met = plan.mets[number]
        operations = [use.operation for use in met.uses]
        results = [operation.outputs[0] for operation in operations]
        if met.whole:
            # In the program's own way; u has to vary over the axes of the leaf.
            alone = values | {number: jnp.where(False, leaf, u)}
            program.run([*met.views, *operations], alone)
            return {result: alone[result] for result in results}
        found = {}
        for use, result in zip(met.uses, results, strict=True):
            coefficient = coefficients[number, use.factor]
            change = apply_rows(at_turn(use.factor.number, coefficient, j), u)
            change = jnp.transpose(change, use.order)
            found[result] = change.reshape(program.shapes[result].shape)
        return found

    def at(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> ProgramValues:
        """All values of the program there, and what u alone adds to the products."""
        seen = dict(values)
        seen.update({n: at_turn(n, value, j) for n, value in in_turn.items()})
        products = {}
        moves = jax.tree.leaves(displacement)
        for number, leaf, u in zip(plan.leaves, leaves, moves, strict=True):
            if number not in plan.mets:
                seen[number] = translate(leaf, scaled(u, sign))
                continue
            products |= added(number, leaf, u, j)
        for result, change in products.items():
            # The sign comes last, so that ±u share the product.
            seen[result] = translate(seen[result], change * sign)
        program.run(plan.every, seen)
        return ProgramValues(seen, products)

    def displaced(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> jax.Array:
        seen = at(displacement, j, sign).values
        return jnp.asarray(seen[program.output]).astype(dtype)

    zeros = mapped(
        lambda part, leaf: jnp.zeros(part.met.reduced_shape(leaf.shape), leaf.dtype),
        lambda leaf: leaf,
    )(zeros_alike(origin))
    by_example = None
    if sights and sights.layers:
        # Products at x are known as well, but move with their leaves.
        unknown = program.dependents(plan.leaves)
        fixed = {n: value for n, value in values.items() if n not in unknown}

        def layer(sight: PerExampleLayer) -> MatrixLayer:
            number = plan.leaves[sight.kernel]
            met, drawn = plan.mets.get(number), None
            if met is not None and not met.whole:
                drawn = coefficients[number, met.uses[0].factor]
            return matrix_layer(sight, program, fixed, drawn)

        layers = tuple(map(layer, sights.layers))
        by_example = make_control_variate(
            sights, layers, program, fixed, zeros, at, zeros
        )
    mask = mapped(lambda part, u: part.directions.mask(u), lambda u: u)
    return Space(
        origin=origin,
        zeros=zeros,
        noise=lambda key, n: jax.vmap(mask)(standard_normals(key, zeros, n)),
        value_fn=displaced,
        value_and_grad=jax.value_and_grad(displaced),
        lift=mapped(ReducedLeaf.lift, lambda u: u),
        lower=mapped(ReducedLeaf.lower, lambda u: u),
        outside=mapped(ReducedLeaf.outside, jnp.zeros_like)
        if any(reduced_leaves)
        else None,
        credit=by_example,
    )
