"""Credit by example: a per-example control variate of mean zero for networks.

Let f = Σᵢ sᵢ over the examples of a batch, where sᵢ sees the noise ε of a layer only in
hᵢᵀε, the product with its own input. Then E[sᵢ ε] = E[sᵢ cᵢ] with the projection
cᵢ = hᵢ (hᵢᵀε)/|hᵢ|², and

    C = Σᵢ (sᵢ - bᵢ)(ε - cᵢ)

has mean exactly zero for constants bᵢ: what example i lost says nothing about the part
of the noise that it never saw. The bias that is added to a product is one more number
of every hᵢ, equal to 1. Where an example has T rows Hᵢ, positions of a sequence or an
image, cᵢ is the projection on what they span. Node perturbation is the idea's relative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lejax._internal.mesh_axes import varying
from lejax._internal.trees import (
    PyTree,
    compute_dtype,
    inner,
    is_large,
    zero_after,
)
from lejax._spaces.row_span import (
    MatrixLayer,
    RowBasis,
    of_sign,
    plus,
    transposed,
    weights,
)
from lejax._tracing.layers import PerExampleLayer
from lejax._tracing.per_example import ExampleSum, PerExampleLoss
from lejax._tracing.program import Program

# One entry for every leaf: None where the examples see it in no layer.
ByLeaf: TypeAlias = tuple[jax.Array | None, ...]
# And one for every layer.
ByLayer: TypeAlias = tuple[jax.Array | None, ...]


class ProgramValues(NamedTuple):
    """A program at a displacement ±u.

    Attributes:
        values: by number.
        products: what u itself, with the sign 1, adds to products with known rows, by
            their numbers.
    """

    values: dict[int, Any]
    products: dict[int, Any]


class ExampleOutputs(NamedTuple):
    """What one evaluation shows of the examples.

    Attributes:
        losses: (B,), what each adds to the loss.
        beside: what is in the loss beside these.
        spans: for every layer what spans its Hᵢ; None where that is the same at every
            point.
        products: for every layer the hᵢᵀu, (B, o), where that is so and there is one
            row; None where nobody has computed them.
    """

    losses: jax.Array
    beside: jax.Array
    spans: tuple[RowBasis | None, ...]
    products: ByLayer


class Sums(NamedTuple):
    """Sums over draws, of what the leaves share and of what the examples saw.

    The second is turned into leaves once, by Σ hᵢ vᵢᵀ, not for every chunk of draws.

    Attributes:
        leaves: by leaf.
        seen: by layer, the vᵢ, (B, T, o); None where rows differ between the points.
    """

    leaves: ByLeaf
    seen: ByLayer


def zero_sums(credit: ControlVariate, *, common: bool) -> Sums:
    """Sums of nothing; `common` says whether all examples share a draw of a leaf."""
    differ = {leaf for at in credit.layers if at.known is None for leaf in at.leaves}
    leaves = tuple(
        zero if common or place in differ else None
        for place, zero in enumerate(credit.zeros)
    )
    seen = tuple(None if at.known is None else at.zeros for at in credit.layers)
    return varying(Sums(leaves, seen), credit.data_axis_name)


def by_leaf(credit: ControlVariate, sums: Sums) -> ByLeaf:
    """All sums as leaves."""
    total = list(sums.leaves)
    for layer, seen in zip(credit.layers, sums.seen, strict=True):
        if seen is None:
            continue
        assert layer.known is not None
        point = tuple(credit.zeros[leaf] for leaf in layer.leaves)
        parts = transposed(layer, layer.known, seen, point)
        for leaf, part in zip(layer.leaves, parts, strict=True):
            total[leaf] = plus(total[leaf], part)
    return tuple(total)


def square(credit: ControlVariate, sums: Sums, dtype: Any) -> jax.Array:
    """The square of the length of all sums, as leaves."""
    total = inner(sums.leaves, sums.leaves, dtype)
    for layer, seen in zip(credit.layers, sums.seen, strict=True):
        if seen is None:
            continue
        assert layer.known is not None
        rows, ones, mine = (
            part.reshape(seen.shape[0] * seen.shape[1], -1)
            for part in (layer.known.rows, layer.known.ones, seen)
        )
        # By the inner products of the rows where these are fewer than their numbers.
        found = jnp.einsum("an,bn,ao,bo->", rows, rows, mine, mine)
        if len(layer.leaves) > 1:
            found = found + jnp.square((ones * mine).sum(0)).sum()
        total = total + found.astype(dtype)
    return total


class ControlVariate(NamedTuple):
    """What a space knows of the examples.

    Attributes:
        examine: `examine(u, sign=1.0)`: the loss at the displacement ±u, and
            `ExampleOutputs`.
        layers: those that the examples see apart.
        zeros: a sum of nothing, by leaf.
        at_origin: the bᵢ: what the examples lose where nothing is displaced.
        data_axis_name: the axis whose members hold parts of the examples, if any. The
            sums are of a member's own; all of them are the mean over the members.
    """

    examine: Callable[..., tuple[jax.Array, ExampleOutputs]]
    layers: tuple[MatrixLayer, ...]
    zeros: ByLeaf
    at_origin: jax.Array
    data_axis_name: str | None = None


def make_control_variate(
    sights: PerExampleLoss,
    layers: tuple[MatrixLayer, ...],
    program: Program,
    known: dict[int, Any],
    zeros: PyTree,
    at: Callable[..., ProgramValues],
    origin: PyTree,
) -> ControlVariate:
    """What is known of the examples, with sums in the shapes of the leaves of `zeros`.

    `layers` are those of the sights, `known` the values that no displacement changes,
    and `at(u, sign=1.0)` is the whole program at ±u; `origin` is the u that displaces
    nothing.
    """
    dtype = compute_dtype(zeros)

    def added(total: ExampleSum, seen: dict[int, Any]) -> jax.Array:
        """What each example adds to the loss by a sum."""
        others = tuple(axis for axis in total.axes if axis != total.axis)
        factor = jnp.asarray(total.sign, dtype)
        for number, exponent in total.factors:
            factor = factor * jnp.asarray(known[number], dtype) ** exponent
        return seen[total.number].sum(others).astype(dtype) * factor

    of_sums = {total.operation.outputs[0] for total in sights.totals}
    behind = program.dependents(of_sums) - of_sums
    after = [step for step in program.operations if not behind.isdisjoint(step.outputs)]

    def beside(seen: dict[int, Any]) -> jax.Array:
        """The loss with sums of 0: known also where an example's loss is not."""
        without = dict(seen)
        for number in of_sums:
            without[number] = jnp.zeros_like(seen[number])
        program.run(after, without)
        return jnp.asarray(without[program.output]).astype(dtype)

    def examine(
        displacement: PyTree, sign: float = 1.0
    ) -> tuple[jax.Array, ExampleOutputs]:
        seen, products = at(displacement, sign=sign)
        losses = functools.reduce(
            jnp.add, (added(total, seen) for total in sights.totals)
        )
        spans = tuple(
            layer.span(seen[sight.inputs]) if layer.known is None else None
            for sight, layer in zip(sights.layers, layers, strict=True)
        )
        value = jnp.asarray(seen[program.output]).astype(dtype)
        of_known = tuple(
            _product(sight, layer, products.get(sight.product))
            for sight, layer in zip(sights.layers, layers, strict=True)
        )
        return value, ExampleOutputs(losses, beside(seen), spans, of_known)

    of_layers = {leaf for layer in layers for leaf in layer.leaves}
    at_origin = examine(origin)[1].losses
    return ControlVariate(
        examine=examine,
        layers=layers,
        zeros=tuple(
            leaf if place in of_layers else None
            for place, leaf in enumerate(jax.tree.leaves(zeros))
        ),
        at_origin=jnp.where(jnp.isfinite(at_origin), at_origin, 0),
    )


def _product(
    sight: PerExampleLayer, layer: MatrixLayer, product: jax.Array | None
) -> jax.Array | None:
    """The hᵢᵀu from what u adds to the product of a layer with known rows."""
    if product is None or layer.known is None or layer.known.root is not None:
        return None
    rows = jnp.transpose(product, sight.product_order).reshape(len(layer.zeros), -1)
    # A row that is not finite shows nothing.
    return jnp.where(layer.known.finite[:, None], rows, 0)


def add_control_variate(
    credit: ControlVariate,
    total: Sums,
    displacements: Any,
    signs: jax.Array,
    valid: jax.Array,
    seen: ExampleOutputs,
) -> Sums:
    """The total, and ΣC over draws whose leaves are (p, g, ...), under k signs."""
    moves = jax.tree.leaves(displacements)
    sign = signs.astype(seen.losses.dtype).reshape(-1, 1, 1, 1)
    # An example whose loss is not finite has seen its own part alone, as the others.
    counts = jnp.isfinite(seen.losses) & valid[..., None]
    losses = jnp.where(counts, sign * (seen.losses - credit.at_origin), 0)
    leaves, of_seen = list(total.leaves), list(total.seen)
    for place, layer in enumerate(credit.layers):
        mine = tuple(moves[leaf] for leaf in layer.leaves)
        common, part = _of_layer(
            layer, mine, losses, seen.spans[place], seen.products[place]
        )
        if part is not None:
            of_seen[place] = plus(of_seen[place], part)
        added = [
            plus(leaves[leaf], found)
            for leaf, found in zip(layer.leaves, common, strict=True)
        ]
        for leaf, found in zip(layer.leaves, added, strict=True):
            leaves[leaf] = found
        if is_large(credit.zeros):
            # One after the other: the sums of a chunk are never there all at once.
            wait = zero_after(added[0])
            moves = [move + wait.astype(move.dtype) for move in moves]
    return Sums(tuple(leaves), tuple(of_seen))


def _of_layer(
    layer: MatrixLayer,
    moves: tuple[jax.Array, ...],
    losses: jax.Array,
    span: RowBasis | None,
    product: jax.Array | None,
) -> tuple[list[jax.Array], jax.Array | None]:
    """ΣC of one layer's leaves; `losses` are the signed sᵢ - bᵢ, (k, p, g, B)."""
    kernels = jax.vmap(jax.vmap(layer.matrix))(moves[0])
    vectors = [jax.vmap(jax.vmap(layer.vector))(bias) for bias in moves[1:]]
    if layer.known is not None:
        met = layer.known
        losses = jnp.where(met.finite, losses, 0).sum(0)
        factor = weights(met, -losses).astype(kernels.dtype)
        if product is None:
            # In the order that takes the fewest operations.
            seen = jnp.einsum("pgb,btn,pgno->bto", factor, met.rows, kernels)
        else:  # of u, whatever the sign
            seen = jnp.einsum("pgb,pgbo->bo", factor, product[0])[:, None]
        for bias in vectors:
            seen = seen + jnp.einsum("pgb,bt,pgo->bto", factor, met.ones, bias)
        return _common(losses, moves), seen
    assert span is not None
    found: list[jax.Array] = []
    whole = jnp.zeros_like(losses[0])
    # Sign by sign: stacked, the rows would be copied.
    for k, signed in enumerate(losses):
        met = of_sign(span, k)
        mine = jnp.where(met.finite, signed, 0)
        seen = jnp.einsum("pgbtn,pgno->pgbto", met.rows, kernels)
        for bias in vectors:
            seen = seen + met.ones[..., None] * bias[:, :, None, None]
        weighted = seen * weights(met, -mine).astype(seen.dtype)[..., None, None]
        point = tuple(move[0, 0] for move in moves)
        parts = transposed(layer, met, weighted, point)
        found = list(map(jnp.add, found, parts)) if found else parts
        whole = whole + mine
    return list(map(jnp.add, _common(whole, moves), found)), None


def _common(losses: jax.Array, moves: tuple[jax.Array, ...]) -> list[jax.Array]:
    """Σ over draws and examples of what they lost, (p, g, B), times the draw."""
    whole = losses.sum(-1)
    return [jnp.tensordot(whole.astype(move.dtype), move, 2) for move in moves]
