"""A per-example control variate of mean zero for networks: credit by example.

Let f = Σᵢ sᵢ over the examples of a batch, and let sᵢ depend on the noise ε of a layer
only through hᵢᵀε, the product with its own row. With the projection
cᵢ = hᵢ (hᵢᵀε)/|hᵢ|² of the noise onto that row, E[sᵢ ε] = E[sᵢ cᵢ]. So

    C = Σᵢ (sᵢ - bᵢ)(ε - cᵢ)

has mean exactly zero for constant baselines bᵢ: the loss of example i is independent of
the noise orthogonal to its row. A bias is one more number of every hᵢ, equal to 1. If
an example has T rows Hᵢ, positions of a sequence or an image, cᵢ is the projection onto
their span. Node perturbation is a related method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lejax._internal.mesh_axes import varying
from lejax._internal.trees import compute_dtype, inner, is_large, zero_after
from lejax._internal.types import PyTree
from lejax._spaces.example_outputs import (
    ByLayer,
    ExampleOutputs,
    ProgramValues,
    examine_examples,
)
from lejax._spaces.row_span import (
    MatrixLayer,
    RowBasis,
    add_to,
    basis_of_sign,
    over_squared_norms,
    transposed_product,
)
from lejax._tracing.per_example import PerExampleLoss
from lejax._tracing.program import Program

# One entry for every leaf: None for a leaf in no layer.
ByLeaf: TypeAlias = tuple[jax.Array | None, ...]


class Sums(NamedTuple):
    """Sums over draws, in two parts.

    The sum over a layer is turned into leaves only once, by Σ hᵢ vᵢᵀ, not for every
    chunk of draws.

    Attributes:
        leaves: by leaf.
        layers: by layer, the vᵢ, (B, T, o); None if the rows differ between draws.
    """

    leaves: ByLeaf
    layers: ByLayer


def zero_sums(control_variate: ControlVariate, *, common: bool) -> Sums:
    """Sums of no draws; `common` is whether all examples share the draw of a leaf."""
    rows_differ = {
        leaf
        for layer in control_variate.layers
        if layer.fixed_basis is None
        for leaf in layer.leaves
    }
    leaves = tuple(
        zero if common or place in rows_differ else None
        for place, zero in enumerate(control_variate.zeros)
    )
    layers = tuple(
        None if layer.fixed_basis is None else layer.zeros
        for layer in control_variate.layers
    )
    return varying(Sums(leaves, layers), control_variate.data_axis_name)


def sums_by_leaf(control_variate: ControlVariate, sums: Sums) -> ByLeaf:
    """The sums, with both parts as leaves."""
    total = list(sums.leaves)
    for layer, vectors in zip(control_variate.layers, sums.layers, strict=True):
        if vectors is None:
            continue
        assert layer.fixed_basis is not None
        zeros = tuple(control_variate.zeros[leaf] for leaf in layer.leaves)
        parts = transposed_product(layer, layer.fixed_basis, vectors, zeros)
        for leaf, part in zip(layer.leaves, parts, strict=True):
            total[leaf] = add_to(total[leaf], part)
    return tuple(total)


def squared_norm(control_variate: ControlVariate, sums: Sums, dtype: Any) -> jax.Array:
    """The squared norm of the sums as leaves, if no leaf is in both parts."""
    total = inner(sums.leaves, sums.leaves, dtype)
    for layer, vectors in zip(control_variate.layers, sums.layers, strict=True):
        if vectors is None:
            continue
        assert layer.fixed_basis is not None
        rows, ones, vectors = (
            part.reshape(vectors.shape[0] * vectors.shape[1], -1)
            for part in (layer.fixed_basis.rows, layer.fixed_basis.ones, vectors)
        )
        # |Σ hᵢ vᵢᵀ|² by inner products of the rows, if these are fewer than their
        # numbers: the contraction takes the cheapest order.
        square = jnp.einsum("an,bn,ao,bo->", rows, rows, vectors, vectors)
        if len(layer.leaves) > 1:
            square = square + jnp.square((ones * vectors).sum(0)).sum()
        total = total + square.astype(dtype)
    return total


class ControlVariate(NamedTuple):
    """The control variate of a space, by example.

    Attributes:
        examine: `examine(u, sign=1.0)`: the loss at the displacement ±u, and
            `ExampleOutputs`.
        layers: the layers whose noise an example meets only in its own rows.
        zeros: a sum of no draws, by leaf.
        baselines: the bᵢ, (B,): the losses of the examples at displacement 0.
        data_axis_name: the axis whose members hold parts of the examples, if any. A
            member sums over its own examples; the whole sum is the mean over members.
    """

    examine: Callable[..., tuple[jax.Array, ExampleOutputs]]
    layers: tuple[MatrixLayer, ...]
    zeros: ByLeaf
    baselines: jax.Array
    data_axis_name: str | None = None


def make_control_variate(
    per_example: PerExampleLoss,
    layers: tuple[MatrixLayer, ...],
    program: Program,
    fixed_values: dict[int, Any],
    zeros: PyTree,
    evaluate: Callable[..., ProgramValues],
    origin: PyTree,
) -> ControlVariate:
    """The control variate of a loss, with sums in the shapes of the leaves of `zeros`.

    Args:
        per_example: the loss as a sum over examples.
        layers: its layers as matrices.
        program: the program of the loss.
        fixed_values: the values that no displacement changes, by number.
        zeros: the displacement 0 of the leaves.
        evaluate: `evaluate(u, sign=1.0)`: the values of the program at ±u.
        origin: the u that displaces nothing.
    """
    examine = examine_examples(
        per_example, layers, program, fixed_values, compute_dtype(zeros), evaluate
    )
    in_layers = {leaf for layer in layers for leaf in layer.leaves}
    baselines = examine(origin)[1].losses
    return ControlVariate(
        examine=examine,
        layers=layers,
        zeros=tuple(
            leaf if place in in_layers else None
            for place, leaf in enumerate(jax.tree.leaves(zeros))
        ),
        baselines=jnp.where(jnp.isfinite(baselines), baselines, 0),
    )


def add_control_variate(
    control_variate: ControlVariate,
    total: Sums,
    displacements: Any,
    signs: jax.Array,
    valid: jax.Array,
    outputs: ExampleOutputs,
) -> Sums:
    """`total` + ΣC over draws under k signs; the leaves of a draw are (p, g, ...)."""
    moves = jax.tree.leaves(displacements)
    sign = signs.astype(outputs.losses.dtype).reshape(-1, 1, 1, 1)
    # Failures are masked by example, so the others keep their part of C.
    counts = jnp.isfinite(outputs.losses) & valid[..., None]
    losses = outputs.losses - control_variate.baselines
    signed_losses = jnp.where(counts, sign * losses, 0)
    leaves, layers = list(total.leaves), list(total.layers)
    for place, layer in enumerate(control_variate.layers):
        leaf_parts, layer_part = _sums_of_layer(
            layer,
            tuple(moves[leaf] for leaf in layer.leaves),
            signed_losses,
            outputs.bases[place],
            outputs.products[place],
        )
        if layer_part is not None:
            layers[place] = add_to(layers[place], layer_part)
        added = [
            add_to(leaves[leaf], part)
            for leaf, part in zip(layer.leaves, leaf_parts, strict=True)
        ]
        for leaf, leaf_sum in zip(layer.leaves, added, strict=True):
            leaves[leaf] = leaf_sum
        if is_large(control_variate.zeros):
            # Layer by layer, so that not all sums of a chunk are in memory at once.
            wait = zero_after(added[0])
            moves = [move + wait.astype(move.dtype) for move in moves]
    return Sums(tuple(leaves), tuple(layers))


def _sums_of_layer(
    layer: MatrixLayer,
    moves: tuple[jax.Array, ...],
    signed_losses: jax.Array,
    bases: RowBasis | None,
    products: jax.Array | None,
) -> tuple[list[jax.Array], jax.Array | None]:
    """ΣC of one layer: the part by leaf, and the part by layer.

    `signed_losses` are ±(sᵢ - bᵢ), (k, p, g, B).
    """
    kernels = jax.vmap(jax.vmap(layer.matrix))(moves[0])
    vectors = [jax.vmap(jax.vmap(layer.vector))(bias) for bias in moves[1:]]
    basis = layer.fixed_basis
    if basis is not None:
        losses = jnp.where(basis.finite, signed_losses, 0).sum(0)
        scaled = over_squared_norms(basis, -losses).astype(kernels.dtype)
        if products is None:
            # One einsum, which picks the order with the fewest operations.
            projected = jnp.einsum("pgb,btn,pgno->bto", scaled, basis.rows, kernels)
        else:  # those of u, whatever the sign
            projected = jnp.einsum("pgb,pgbo->bo", scaled, products[0])[:, None]
        for bias in vectors:
            with_ones = jnp.einsum("pgb,bt,pgo->bto", scaled, basis.ones, bias)
            projected = projected + with_ones
        return _losses_times_draws(losses, moves), projected
    assert bases is not None
    total: list[jax.Array] = []
    all_losses = jnp.zeros_like(signed_losses[0])
    # Sign by sign: stacked, the rows would be copied.
    for k, losses_of_sign in enumerate(signed_losses):
        basis = basis_of_sign(bases, k)
        losses = jnp.where(basis.finite, losses_of_sign, 0)
        projected = jnp.einsum("pgbtn,pgno->pgbto", basis.rows, kernels)
        for bias in vectors:
            projected = projected + basis.ones[..., None] * bias[:, :, None, None]
        scaled = over_squared_norms(basis, -losses).astype(projected.dtype)
        projected = projected * scaled[..., None, None]
        one_draw = tuple(move[0, 0] for move in moves)
        parts = transposed_product(layer, basis, projected, one_draw)
        total = list(map(jnp.add, total, parts)) if total else parts
        all_losses = all_losses + losses
    return list(map(jnp.add, _losses_times_draws(all_losses, moves), total)), None


def _losses_times_draws(
    losses: jax.Array, moves: tuple[jax.Array, ...]
) -> list[jax.Array]:
    """Σ over draws and examples of their losses, (p, g, B), times the draw."""
    whole = losses.sum(-1)
    return [jnp.tensordot(whole.astype(move.dtype), move, 2) for move in moves]
