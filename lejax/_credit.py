"""Credit by example: a control variate of mean zero for networks.

Let f = Σᵢ sᵢ over the examples of a batch, where sᵢ sees the noise ε of a layer only in
hᵢᵀε, the product with its own input. Then E[sᵢ ε] = E[sᵢ cᵢ] with the projection
cᵢ = hᵢ (hᵢᵀε)/|hᵢ|², and

    C = Σᵢ (sᵢ - bᵢ)(ε - cᵢ)

has mean exactly zero for constants bᵢ: what example i lost says nothing about the part
of the noise that it never saw. The bias that is added to a product is one more number
of every hᵢ, equal to 1. Node perturbation is the idea's relative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lejax._axes import varying
from lejax._directions import seen_from
from lejax._program import Program
from lejax._sights import Sight, Sights
from lejax._trees import PyTree, compute_dtype, is_large
from lejax._uses import Use

# One entry for every leaf: None where the examples see it in no layer.
ByLeaf: TypeAlias = tuple[jax.Array | None, ...]
# And one for every layer.
ByLayer: TypeAlias = tuple[jax.Array | None, ...]


class Seen(NamedTuple):
    """What one evaluation shows of the examples.

    Attributes:
        losses: (B,), what each adds to the loss.
        inputs: for every layer its inputs hᵢ, with the examples' axis; None where they
            are the same at every point.
    """

    losses: jax.Array
    inputs: ByLayer


class Layer(NamedTuple):
    """A layer of which each example sees its own part.

    Attributes:
        leaves: the places of its kernel and, if it has one, of its bias.
        axis: that of the examples in `seen`.
        inputs: the hᵢ where they are the same at every point, else None.
        inputs_axis: the axis of the examples in them.
        seen: `seen(moves, inputs)`: hᵢᵀε for all examples, of displacements of the
            leaves; linear in them.
        zeros: what is seen of no displacement.
    """

    leaves: tuple[int, ...]
    axis: int
    inputs: jax.Array | None
    inputs_axis: int
    seen: Callable[[tuple[jax.Array, ...], jax.Array], jax.Array]
    zeros: jax.Array


class Sums(NamedTuple):
    """Sums over draws, of what the leaves share and of what the examples saw.

    The second is turned into leaves once, by Σ hᵢ vᵢᵀ, not for every chunk of draws.

    Attributes:
        leaves: by leaf.
        seen: by layer, the vᵢ; None where the inputs differ between the points.
    """

    leaves: ByLeaf
    seen: ByLayer


def no_sums(credit: Credit, *, common: bool) -> Sums:
    """Sums of nothing; `common` says whether all examples share a draw of a leaf."""
    differ = {leaf for at in credit.layers if at.inputs is None for leaf in at.leaves}
    leaves = tuple(
        zero if common or place in differ else None
        for place, zero in enumerate(credit.zeros)
    )
    seen = tuple(None if at.inputs is None else at.zeros for at in credit.layers)
    return varying(Sums(leaves, seen), credit.data_axis_name)


def by_leaf(credit: Credit, sums: Sums, axis_name: str | None) -> ByLeaf:
    """All of a member's sums as leaves."""
    total = list(sums.leaves)
    # Of the type of a member's own sums: they vary over both axes.
    zeros = varying(varying(credit.zeros, axis_name), credit.data_axis_name)
    for layer, seen in zip(credit.layers, sums.seen, strict=True):
        if seen is None:
            continue
        rows, _, _ = met_rows(layer, None)
        point = tuple(zeros[leaf] for leaf in layer.leaves)
        for leaf, part in zip(
            layer.leaves, transposed(layer, rows, seen, point), strict=True
        ):
            common = total[leaf]
            total[leaf] = part if common is None else common + part
    return tuple(total)


class Credit(NamedTuple):
    """What a space knows of the examples.

    Attributes:
        examine: `examine(u, sign=1.0)`: the loss at the displacement ±u, and `Seen`.
        layers: those that the examples see apart.
        zeros: a sum of nothing, by leaf.
        at_origin: the bᵢ: what the examples lose where nothing is displaced.
        moves_beside: whether the loss has a part beside the sum that moves with u.
        data_axis_name: the axis whose members hold parts of the examples, if any. The
            sums are of a member's own; all of them are the mean over the members.
    """

    examine: Callable[..., tuple[jax.Array, Seen]]
    layers: tuple[Layer, ...]
    zeros: ByLeaf
    at_origin: jax.Array
    moves_beside: bool
    data_axis_name: str | None = None


def make_credit(
    sights: Sights,
    program: Program,
    known: dict[int, Any],
    in_directions: dict[int, tuple[Use, jax.Array]],
    zeros: PyTree,
    at: Callable[..., dict[int, Any]],
    origin: PyTree,
) -> Credit:
    """What is known of the examples, with sums in the shapes of the leaves of `zeros`.

    `known` are the values that no displacement changes, `in_directions` the leaves that
    are drawn in the directions of known rows, by place, and `at(u, sign=1.0)` is the
    whole program at ±u; `origin` is the u that displaces nothing.
    """
    assert sights.total is not None
    total, dtype = sights.total, compute_dtype(zeros)
    summed = tuple(axis for axis in total.axes if axis != sights.axis)
    factor = jnp.asarray(total.sign, dtype)
    for number, exponent in total.factors:
        factor = factor * jnp.asarray(known[number], dtype) ** exponent
    layers = tuple(
        _layer(sight, program, known, in_directions.get(sight.kernel))
        for sight in sights.layers
    )

    def examine(displacement: PyTree, sign: float = 1.0) -> tuple[jax.Array, Seen]:
        seen = at(displacement, sign=sign)
        losses = seen[total.number].sum(summed).astype(dtype) * factor
        inputs = tuple(
            seen[sight.inputs] if layer.inputs is None else None
            for sight, layer in zip(sights.layers, layers, strict=True)
        )
        return jnp.asarray(seen[program.output]).astype(dtype), Seen(losses, inputs)

    of_layers = {leaf for layer in layers for leaf in layer.leaves}
    at_origin = examine(origin)[1].losses
    others = (op for op in program.operations if op is not total.operation)
    beside = program._replace(operations=tuple(others))
    leaves = program.inputs[: len(jax.tree.leaves(zeros))]
    return Credit(
        examine=examine,
        layers=layers,
        zeros=tuple(
            leaf if place in of_layers else None
            for place, leaf in enumerate(jax.tree.leaves(zeros))
        ),
        at_origin=jnp.where(jnp.isfinite(at_origin), at_origin, 0),
        moves_beside=program.output in beside.dependents(leaves),
    )


def _layer(
    sight: Sight,
    program: Program,
    known: dict[int, Any],
    in_directions: tuple[Use, jax.Array] | None,
) -> Layer:
    shape = program.shapes[sight.operation.outputs[0]].shape
    inputs, inputs_axis = known.get(sight.inputs), sight.inputs_axis
    if in_directions is not None:
        inputs, inputs_axis = in_directions[1], 0

    def seen(moves: tuple[jax.Array, ...], inputs: jax.Array) -> jax.Array:
        kernel, *bias = moves
        if in_directions is not None:
            order = in_directions[0].order
            part = jnp.transpose(seen_from(inputs, kernel), order).reshape(shape)
        else:
            for view in sight.kernel_views:
                (kernel,) = view.bind(kernel)
            pair = (kernel, inputs) if sight.operand == 0 else (inputs, kernel)
            (part,) = sight.operation.bind(*pair)
        for view in sight.result_views:
            (part,) = view.bind(part)
        for spread in bias:
            for view in sight.bias_views:
                (spread,) = view.bind(spread)
            part = part + spread
        return part

    leaves = (sight.kernel,) if sight.bias is None else (sight.kernel, sight.bias)
    result = program.shapes[sight.result]
    zeros = jnp.zeros(result.shape, result.dtype)
    return Layer(leaves, sight.axis, inputs, inputs_axis, seen, zeros)


def add_control_variate(
    credit: Credit,
    total: Sums,
    displacements: Any,
    signs: jax.Array,
    valid: jax.Array,
    seen: Seen,
) -> Sums:
    """The total, and ΣC over draws whose leaves are (p, g, ...), under k signs."""
    # Every member's own: a transposed product would add up what is common to them.
    moves = jax.tree.leaves(varying(displacements, credit.data_axis_name))
    sign = signs.astype(seen.losses.dtype).reshape(-1, 1, 1, 1)
    # An example whose loss is not finite has seen its own part alone, as the others.
    counts = jnp.isfinite(seen.losses) & valid[..., None]
    losses = jnp.where(counts, sign * (seen.losses - credit.at_origin), 0)
    leaves, of_seen = list(total.leaves), list(total.seen)
    for place, (layer, inputs) in enumerate(
        zip(credit.layers, seen.inputs, strict=True)
    ):
        mine = tuple(moves[leaf] for leaf in layer.leaves)
        common, part = _of_layer(layer, mine, losses, inputs)
        if part is not None:
            of_seen[place] = of_seen[place] + part
        for leaf, found in zip(layer.leaves, common, strict=True):
            leaves[leaf] = leaves[leaf] + found
        if is_large(credit.zeros):
            # One after the other: the sums of a chunk are never there all at once.
            wait = _nothing(leaves[layer.leaves[0]])
            moves = [move + wait.astype(move.dtype) for move in moves]
    return Sums(tuple(leaves), tuple(of_seen))


def _nothing(of: jax.Array) -> jax.Array:
    """Zero, which no compiler can know before all of the array."""
    summed = of.sum()
    return 0 * jnp.where(jnp.isfinite(summed), jnp.sign(summed), 0)


def _of_layer(
    layer: Layer,
    moves: tuple[jax.Array, ...],
    losses: jax.Array,
    inputs: jax.Array | None,
) -> tuple[list[jax.Array], jax.Array | None]:
    """ΣC of one layer's leaves; `losses` are the signed sᵢ - bᵢ, (k, p, g, B)."""
    rows, squares, finite = met_rows(layer, inputs)
    losses = jnp.where(finite, losses, 0)
    factor = -losses / jnp.where(squares > 0, squares, 1).astype(losses.dtype)
    whole = losses.sum((0, -1))
    common = [jnp.tensordot(whole.astype(move.dtype), move, 2) for move in moves]
    if inputs is None:
        seen = jax.vmap(jax.vmap(lambda moves: layer.seen(moves, rows)))(moves)
        return common, over_draws(layer.axis, factor.sum(0), seen)
    seen = jax.vmap(jax.vmap(jax.vmap(layer.seen)), (None, 0))(moves, rows)
    weighted = seen * along_examples(layer.axis, factor, seen.ndim).astype(seen.dtype)
    projected = transposed(layer, rows, weighted, tuple(move[0, 0] for move in moves))
    return [all_of + part for all_of, part in zip(common, projected, strict=True)], None


def over_draws(axis: int, factor: jax.Array, seen: jax.Array) -> jax.Array:
    """Σ over the draws (p, g) of what was seen, times a factor (p, g, B)."""
    # As a product of matrices, which is several times faster than a sum.
    found = jnp.einsum(
        "pgb,pgb...->b...", factor.astype(seen.dtype), jnp.moveaxis(seen, 2 + axis, 2)
    )
    return jnp.moveaxis(found, 0, axis)


def met_rows(
    layer: Layer, inputs: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The hᵢ, their |hᵢ|² with 1 for a bias, (..., B), and whether these are finite.

    What is not is the earlier noise's doing: no credit at all, and 0 stands for it.
    """
    lead = 0 if inputs is None else 3
    rows = layer.inputs if inputs is None else inputs
    assert rows is not None
    axis = layer.inputs_axis
    squares = squared_norms(rows, axis, lead, has_bias=len(layer.leaves) > 1)
    finite = jnp.isfinite(squares)
    counted = along_examples(axis, finite, rows.ndim)
    rows = jnp.where(counted, rows, 0)
    return rows, jnp.where(finite, squares, 0), finite


def squared_norms(
    rows: jax.Array, axis: int, lead: int = 0, *, has_bias: bool
) -> jax.Array:
    """|hᵢ|², and 1 for a bias, of rows whose examples lie on an axis after `lead`."""
    others = (i for i in range(lead, rows.ndim) if i != lead + axis)
    return jnp.square(rows).sum(tuple(others)) + int(has_bias)


def along_examples(axis: int, factor: jax.Array, ndim: int) -> jax.Array:
    """A factor (..., B), the examples on the axis of what they see, of so many axes."""
    draws = factor.ndim - 1
    rest = (i for i in range(draws, ndim) if i != draws + axis)
    return jnp.expand_dims(factor, tuple(rest))


def transposed(
    layer: Layer, rows: jax.Array, weighted: jax.Array, point: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """Σ hᵢ vᵢᵀ over the examples, and over the draws where they have rows of their own.

    `weighted` are the vᵢ. What is seen is linear in the leaves: `point` is but a type.
    """
    lead = 3 if layer.inputs is None else 0
    rows = rows.reshape(-1, *rows.shape[lead:]) if lead else rows[None]
    weighted = weighted.reshape(-1, *weighted.shape[lead:]) if lead else weighted[None]

    def seen(leaves: tuple[jax.Array, ...]) -> jax.Array:
        return jax.vmap(lambda inputs: layer.seen(leaves, inputs))(rows)

    (projected,) = jax.vjp(seen, point)[1](weighted)
    return projected
