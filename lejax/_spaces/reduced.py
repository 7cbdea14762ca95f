"""The exact isometric reduction: draws only in the row space of the first products.

Let a loss use a kernel W (n, h) only in products A W with known rows A (m, n), m < n.
With the QR decomposition Aᵀ = Q R it depends only on U = QᵀW. Under N(W, τI), U and the
rest of W are independent, as a Gaussian is invariant under rotation. So it is exact to
sample U alone. At a displacement u the product is (A W at x) + Rᵀ u. Means, gradients
and ends of chains are lifted by Q. For an embedding table the rows of A are rows of the
identity. If m ≥ n, a product with a single batch is (A W at x) + A u, and ±u share A u.

Related: Kingma, Salimans and Welling, *Variational dropout and the local
reparameterization trick*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lejax._internal.blocks import Blocks, layout_of
from lejax._internal.mesh_axes import members
from lejax._internal.random import Noise, translate
from lejax._internal.trees import signed, widen
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
from lejax._spaces.space import Space, full_space, space_of
from lejax._tracing.known_rows import LeafUse, RowGather, RowSource
from lejax._tracing.layers import PerExampleLayer
from lejax._tracing.loss import Loss
from lejax._tracing.partial_eval import (
    PartialProgram,
    leaf_uses_of,
    prepare,
    split,
    worthwhile_use,
)
from lejax._tracing.per_example import read_per_example
from lejax._tracing.program import program_of

# By the number of a leaf and the row source: the rows in the basis of the leaf.
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
        """Q u: the displacement of the leaf for a displacement in the basis."""
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


def reduced_space(
    loss: Loss,
    params: PyTree,
    data_axis_name: str | None = None,
    *,
    reduction: bool = True,
    credit: bool = False,
) -> Space:
    """The space of the directions that change the loss on its batch, or inner batches.

    Without `reduction` the coordinates are the parameters themselves. With `credit` the
    space has a per-example control variate, if the loss allows it.

    If the members of an axis hold parts of the batch, the directions are those of all
    parts, because all members must displace the parameters alike.
    """
    if not (reduction or credit):
        return full_space(loss, params)
    num_members = members(data_axis_name)
    inner_batches, program = loss.batches is not None, program_of(loss)
    leaf_uses = leaf_uses_of(program, params, loss.batches, num_members)
    leaves, structure = jax.tree.flatten(params)
    leaf_uses = [
        worthwhile_use(program, use, leaf, inner_batches) if reduction else "turned off"
        for use, leaf in zip(leaf_uses, leaves, strict=True)
    ]
    per_example = read_per_example(program, len(leaves)) if credit else None
    has_layers = per_example is not None and bool(per_example.layers)
    if all(isinstance(use, str) for use in leaf_uses) and not has_layers:
        return full_space(loss, params)
    plan = split(program, leaf_uses)
    origin = widen(params)
    on_batch = program.dependents(program.inputs[len(leaves) :])
    values, batch_values, rows = prepare(plan, leaves, loss.batches)
    reduced_leaves, coefficients = _reduced_leaves(
        plan, jax.tree.leaves(origin), rows, data_axis_name
    )

    def mapped(
        reduced: Callable[[ReducedLeaf, Any], Any], whole: Callable[[Any], Any]
    ) -> Callable[[PyTree], PyTree]:
        """The function of trees that applies these to reduced and to whole leaves."""
        return lambda tree: structure.unflatten(
            whole(leaf) if part is None else reduced(part, leaf)
            for part, leaf in zip(reduced_leaves, jax.tree.leaves(tree), strict=True)
        )

    def on_nth_batch(number: int, value: Any, j: Any) -> Any:
        return value[j % value.shape[0]] if number in on_batch else value

    def changes(number: int, leaf: jax.Array, u: jax.Array, j: Any) -> dict[int, Any]:
        """The changes of the products of a leaf by u, by their numbers."""
        leaf_use = plan.leaf_uses[number]
        operations = [operand.operation for operand in leaf_use.operands]
        results = [operation.outputs[0] for operation in operations]
        if leaf_use.why_whole:
            # By the program's own operations. For these, u must vary over the same mesh
            # axes as the leaf.
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

    def reduced_zeros(part: ReducedLeaf, leaf: jax.Array) -> jax.Array:
        return jnp.zeros(part.leaf_use.reduced_shape(leaf.shape), leaf.dtype)

    like = mapped(reduced_zeros, lambda leaf: leaf)(origin)
    layout = layout_of(like)

    def evaluate(u: Blocks, j: Any = 0, sign: Any = None) -> ProgramValues:
        """The values of the program at ±u, and the changes of the products by u."""
        at_u = dict(values)
        at_u.update({n: on_nth_batch(n, value, j) for n, value in batch_values.items()})
        products = {}
        moves = jax.tree.leaves(layout.tree(u))
        for number, leaf, move in zip(plan.leaves, leaves, moves, strict=True):
            if number in plan.leaf_uses:
                products |= changes(number, leaf, move, j)
            else:
                at_u[number] = translate(leaf, signed(move, sign))
        for result, change in products.items():
            # The sign is applied last, so that ±u share the product.
            at_u[result] = translate(at_u[result], signed(change, sign))
        program.run(plan.per_displacement, at_u)
        return ProgramValues(at_u, products)

    def displaced(u: Blocks, j: Any, sign: Any) -> jax.Array:
        return evaluate(u, j, sign).values[program.output]

    space = space_of(layout, origin, like, displaced, exact=loss.calls_outside)
    control_variate = None
    if per_example is not None and has_layers:
        # `values` also has the products at x, which change with their leaves.
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
            per_example,
            layers,
            program,
            fixed_values,
            layout,
            space.zeros,
            evaluate,
            space.zeros,
        )
    if not any(reduced_leaves):
        return space._replace(control_variate=control_variate)
    mask = mapped(lambda part, ones: part.basis.mask(ones), lambda ones: ones)
    lift = mapped(ReducedLeaf.lift, lambda u: u)
    lower = mapped(ReducedLeaf.lower, lambda u: u)
    padded = any(
        part is not None and part.basis.valid is not None for part in reduced_leaves
    )

    def noise(key: jax.Array, copies: int) -> Noise:
        drawn = space.noise(key, copies)
        if not padded:
            return drawn
        kept = layout.blocks(mask(layout.tree(drawn.normals)))
        return drawn._replace(normals=kept)

    return space._replace(
        noise=noise,
        lift=lambda u: lift(layout.tree(u)),
        lower=lambda tree: layout.blocks(lower(tree)),
        to_null_space=mapped(ReducedLeaf.to_null_space, jnp.zeros_like),
        control_variate=control_variate,
    )


def _reduced_leaves(
    plan: PartialProgram,
    leaves: Sequence[jax.Array],
    rows: RowValues,
    data_axis_name: str | None,
) -> tuple[list[ReducedLeaf | None], Coefficients]:
    """The reduced leaves, None for the others, and the rows in their bases."""
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
        # Leaves with the same rows share a basis: the gates of a recurrent cell.
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
