"""The exact isometric reduction: draws only in the row space of the first products.

Let a loss use a kernel W (n, h) only in products A W with known rows A (m, n), m < n.
With Aᵀ = Q R it depends only on U = QᵀW. Under N(W, τI), U and the rest of W are
independent, as a Gaussian is invariant under rotation; so sampling U alone is exact. At
a displacement u the product is (A W at x) + Rᵀ u. Means, gradients and ends of chains
are lifted by Q. Rows of an embedding table are the same, with rows of the identity for
A. If m ≥ n, a product with a single batch is still (A W at x) + A u, and ±u share A u.

Related: Kingma, Salimans and Welling, *Variational dropout and the local
reparameterization trick*.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lejax._internal.mesh_axes import members
from lejax._internal.random import standard_normals, translate
from lejax._internal.trees import compute_dtype, scaled, widen, zeros_alike
from lejax._internal.types import PyTree
from lejax._spaces.basis import (
    Basis,
    RowValues,
    apply_rows,
    basis_of_gathers,
    basis_of_rows,
)
from lejax._spaces.control_variate import make_control_variate
from lejax._spaces.example_outputs import ProgramValues
from lejax._spaces.row_span import MatrixLayer, make_matrix_layer
from lejax._spaces.space import Space, full_space
from lejax._tracing.known_rows import LeafUse, RowGather, RowSource
from lejax._tracing.layers import PerExampleLayer
from lejax._tracing.partial_eval import (
    PartialProgram,
    prepare,
    split,
    trace_leaf_uses,
    worthwhile_use,
)
from lejax._tracing.per_example import read_per_example

# Of every leaf (by number) and row source: the rows in the basis of the leaf.
Coefficients: TypeAlias = dict[tuple[int, RowSource], jax.Array]


class ReducedLeaf(NamedTuple):
    """A leaf in the coordinates of a basis.

    Attributes:
        leaf_use: how the loss uses it.
        shape: the shape of the leaf.
        basis: the basis of its known rows.
    """

    leaf_use: LeafUse
    shape: tuple[int, ...]
    basis: Basis

    def lift(self, u: jax.Array) -> jax.Array:
        """Q u: a displacement in the basis as one of the leaf."""
        order = self.leaf_use.order(len(self.shape))
        lifted = self.basis.lift(u, self.leaf_use.row_length(self.shape))
        unfolded = lifted.reshape(tuple(self.shape[i] for i in order))
        return jnp.transpose(unfolded, sorted(range(len(order)), key=order.__getitem__))

    def lower(self, leaf: jax.Array) -> jax.Array:
        """Qᵀ times a displacement of the leaf."""
        ordered = jnp.transpose(leaf, self.leaf_use.order(len(self.shape)))
        others = ordered.shape[len(self.leaf_use.axes) :]
        folded = ordered.reshape(self.leaf_use.row_length(self.shape), *others)
        return self.basis.lower(folded)

    def to_null_space(self, leaf: jax.Array) -> jax.Array:
        """The part of a displacement of the leaf that is orthogonal to every row."""
        return leaf - self.lift(self.lower(leaf))


def space_maker(reduction: bool, credit: bool = False) -> Callable[..., Space]:
    """The maker of the space for the options of a sampler."""
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
    """The space of the directions that change the loss on its batch, or inner batches.

    Without `reduction` the coordinates are the parameters' own. With `credit` the space
    has a per-example control variate, if the loss allows it.

    If the members of an axis hold parts of the batch, the rows of all of them count:
    all must move the parameters in the same directions.
    """
    num_members = members(data_axis_name)
    program, leaf_uses = trace_leaf_uses(
        value_fn, params, batch, inner_batches, num_members
    )
    leaves, structure = jax.tree.flatten(params)
    leaf_uses = [
        worthwhile_use(program, use, leaf, inner_batches) if reduction else "turned off"
        for use, leaf in zip(leaf_uses, leaves, strict=True)
    ]
    per_example = read_per_example(program, len(leaves)) if credit else None
    has_layers = per_example is not None and bool(per_example.layers)
    if all(isinstance(use, str) for use in leaf_uses) and not has_layers:
        return full_space(value_fn, params, batch, inner_batches, data_axis_name)
    plan = split(program, leaf_uses)
    origin, dtype = widen(params), compute_dtype(params)
    on_batch = program.dependents(program.inputs[len(leaves) :])
    values, batch_values, rows = prepare(plan, leaves, batch if inner_batches else None)
    reduced_leaves, coefficients = _reduced_leaves(
        plan, jax.tree.leaves(origin), rows, data_axis_name
    )

    def mapped(
        reduced: Callable[[ReducedLeaf, Any], Any], whole: Callable[[Any], Any]
    ) -> Callable[[PyTree], PyTree]:
        """The function of trees that maps reduced leaves and whole leaves so."""
        return lambda tree: structure.unflatten(
            whole(leaf) if part is None else reduced(part, leaf)
            for part, leaf in zip(reduced_leaves, jax.tree.leaves(tree), strict=True)
        )

    def on_nth_batch(number: int, value: Any, j: Any) -> Any:
        return value[j % value.shape[0]] if number in on_batch else value

    def changes(number: int, leaf: jax.Array, u: jax.Array, j: Any) -> dict[int, Any]:
        """What u adds to the products of a leaf, by their numbers."""
        leaf_use = plan.leaf_uses[number]
        operations = [operand.operation for operand in leaf_use.operands]
        results = [operation.outputs[0] for operation in operations]
        if leaf_use.why_whole:
            # By the program's own operations; u must vary over the axes of the leaf.
            alone = values | {number: jnp.where(False, leaf, u)}
            program.run([*leaf_use.views, *operations], alone)
            return {result: alone[result] for result in results}
        products = {}
        for operand, result in zip(leaf_use.operands, results, strict=True):
            source = operand.row_source
            own = on_nth_batch(source.number, coefficients[number, source], j)
            product = jnp.transpose(apply_rows(own, u), operand.result_order)
            products[result] = product.reshape(program.shapes[result].shape)
        return products

    def evaluate(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> ProgramValues:
        """The values of the program at ±u, and what u itself adds to the products."""
        at_u = dict(values)
        at_u.update({n: on_nth_batch(n, value, j) for n, value in batch_values.items()})
        products = {}
        moves = jax.tree.leaves(displacement)
        for number, leaf, u in zip(plan.leaves, leaves, moves, strict=True):
            if number not in plan.leaf_uses:
                at_u[number] = translate(leaf, scaled(u, sign))
                continue
            products |= changes(number, leaf, u, j)
        for result, change in products.items():
            # The sign comes last, so that ±u share the product.
            at_u[result] = translate(at_u[result], change * sign)
        program.run(plan.per_displacement, at_u)
        return ProgramValues(at_u, products)

    def displaced(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> jax.Array:
        at_u = evaluate(displacement, j, sign).values
        return jnp.asarray(at_u[program.output]).astype(dtype)

    def reduced_zeros(part: ReducedLeaf, leaf: jax.Array) -> jax.Array:
        return jnp.zeros(part.leaf_use.reduced_shape(leaf.shape), leaf.dtype)

    zeros = mapped(reduced_zeros, lambda leaf: leaf)(zeros_alike(origin))
    control_variate = None
    if per_example is not None and has_layers:
        # Products at x are among `values`, too, but move with their leaves.
        on_params = program.dependents(plan.leaves)
        fixed_values = {n: value for n, value in values.items() if n not in on_params}

        def as_matrix(layer: PerExampleLayer) -> MatrixLayer:
            number = plan.leaves[layer.kernel]
            leaf_use, in_basis = plan.leaf_uses.get(number), None
            if leaf_use is not None and not leaf_use.why_whole:
                in_basis = coefficients[number, leaf_use.operands[0].row_source]
            return make_matrix_layer(layer, program, fixed_values, in_basis)

        layers = tuple(map(as_matrix, per_example.layers))
        control_variate = make_control_variate(
            per_example, layers, program, fixed_values, zeros, evaluate, zeros
        )
    mask = mapped(lambda part, u: part.basis.mask(u), lambda u: u)
    return Space(
        origin=origin,
        zeros=zeros,
        noise=lambda key, n: jax.vmap(mask)(standard_normals(key, zeros, n)),
        value_fn=displaced,
        value_and_grad=jax.value_and_grad(displaced),
        lift=mapped(ReducedLeaf.lift, lambda u: u),
        lower=mapped(ReducedLeaf.lower, lambda u: u),
        to_null_space=mapped(ReducedLeaf.to_null_space, jnp.zeros_like)
        if any(reduced_leaves)
        else None,
        control_variate=control_variate,
    )


def _reduced_leaves(
    plan: PartialProgram,
    leaves: Sequence[jax.Array],
    rows: RowValues,
    data_axis_name: str | None,
) -> tuple[list[ReducedLeaf | None], Coefficients]:
    """The reduced leaves, None for whole ones, and the rows in their bases."""
    reduced_leaves: list[ReducedLeaf | None] = []
    coefficients: Coefficients = {}
    bases: dict[Any, tuple[Basis, RowValues]] = {}
    for number, leaf in zip(plan.leaves, leaves, strict=True):
        leaf_use = plan.leaf_uses.get(number)
        if leaf_use is None or leaf_use.why_whole:
            reduced_leaves.append(None)
            continue
        sources = [operand.row_source for operand in leaf_use.operands]
        own_rows = {source: rows[source] for source in sources}
        size = leaf_use.row_length(leaf.shape)
        # Leaves with the same rows share a basis, as the gates of a cell do.
        shared = (*own_rows, size, leaf.dtype)
        if shared not in bases:
            gathers = any(isinstance(source, RowGather) for source in own_rows)
            bases[shared] = (
                basis_of_gathers(own_rows, size, data_axis_name)
                if gathers
                else basis_of_rows(own_rows, size, leaf.dtype, data_axis_name)
            )
        basis, by_source = bases[shared]
        reduced_leaves.append(ReducedLeaf(leaf_use, leaf.shape, basis))
        coefficients |= {(number, source): c for source, c in by_source.items()}
    return reduced_leaves, coefficients
