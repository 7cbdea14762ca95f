"""A per-example control variate of mean zero for networks: credit by example.

Let f = Σᵢ sᵢ over the examples of a batch, and let sᵢ depend on the noise ε of a layer
only through hᵢᵀε, the product with its own row. With the projection
cᵢ = hᵢ (hᵢᵀε)/|hᵢ|² of the noise onto that row, E[sᵢ ε] = E[sᵢ cᵢ]. So

    C = Σᵢ (sᵢ - bᵢ)(ε - cᵢ)

has mean exactly zero for constant baselines bᵢ, because the loss of example i is
independent of the noise orthogonal to its row. A bias appends an entry 1 to every hᵢ.
If an example has T rows Hᵢ, for the positions of a sequence or an image, cᵢ is the
projection onto their span. Node perturbation is a related method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._internal.blocks import Blocks, Layout
from lejax._internal.mesh_axes import varying
from lejax._internal.trees import inner, zero_after
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
    over_squared_norms,
    transposed_product,
)
from lejax._tracing.per_example import PerExampleLoss
from lejax._tracing.program import Program


class Sums(NamedTuple):
    """Sums over draws, in two parts.

    If the rows of a layer are the same in all draws, only its vᵢ are summed over the
    chunks of draws. The product Σ hᵢ vᵢᵀ, a sum for the leaves, is computed once.

    Attributes:
        blocks: the sums for the leaves.
        layers: by layer, the vᵢ, (B, T, o); None if the rows differ between draws.
    """

    blocks: Blocks
    layers: ByLayer


class ControlVariate(NamedTuple):
    """The per-example control variate of a space.

    Attributes:
        examine: `examine(u, sign=None)`: the loss at the displacement ±u, and
            `ExampleOutputs`.
        layers: the layers whose noise affects an example only through its own rows.
        layout: the layout of the leaves of a sum.
        zeros: a sum of zero.
        baselines: the bᵢ, (B,): the losses of the examples at displacement 0.
        data_axis_name: the axis whose members hold parts of the examples, if any. A
            member sums over its own examples; the whole sum is the mean over members.
    """

    examine: Callable[..., tuple[jax.Array, ExampleOutputs]]
    layers: tuple[MatrixLayer, ...]
    layout: Layout
    zeros: Blocks
    baselines: jax.Array
    data_axis_name: str | None = None

    def no_sums(self) -> Sums:
        """The sums before the first draw."""
        layers = tuple(
            None if layer.fixed_basis is None else layer.zeros for layer in self.layers
        )
        return varying(Sums(self.zeros, layers), self.data_axis_name)

    def as_blocks(self, sums: Sums) -> Blocks:
        """The sums, with both parts added as blocks."""
        parts: dict[int, jax.Array] = {}
        for layer, vectors in zip(self.layers, sums.layers, strict=True):
            if vectors is not None:
                assert layer.fixed_basis is not None
                parts |= self.parts(layer, layer.fixed_basis, vectors)
        return self.with_parts(sums.blocks, parts)

    def parts(
        self, layer: MatrixLayer, basis: RowBasis, vectors: jax.Array
    ) -> dict[int, jax.Array]:
        """Σ hᵢ vᵢᵀ, as leaves by their places."""
        leaves = self.layout.leaves
        found = transposed_product(
            layer, basis, vectors, tuple(leaves[leaf] for leaf in layer.leaves)
        )
        return dict(zip(layer.leaves, found, strict=True))

    def with_parts(self, blocks: Blocks, parts: dict[int, jax.Array]) -> Blocks:
        """The blocks with `parts` added to the leaves that these belong to."""
        if not parts:
            return blocks
        added = self.layout.some_blocks(parts)
        return tuple(
            block if part is None else block + part.astype(block.dtype)
            for block, part in zip(blocks, added, strict=True)
        )

    def squared_norm(self, sums: Sums) -> jax.Array:
        """The squared norm of `as_blocks(sums)`, if no leaf is in both parts."""
        total = inner(sums.blocks, sums.blocks, self.layout.dtype)
        for layer, vectors in zip(self.layers, sums.layers, strict=True):
            if vectors is None:
                continue
            assert layer.fixed_basis is not None
            rows, ones, vectors = (
                part.reshape(vectors.shape[0] * vectors.shape[1], -1)
                for part in (layer.fixed_basis.rows, layer.fixed_basis.ones, vectors)
            )
            # |Σ hᵢ vᵢᵀ|². The einsum picks the cheapest order: by inner products of the
            # rows, if there are fewer rows than entries of a row.
            square = jnp.einsum("an,bn,ao,bo->", rows, rows, vectors, vectors)
            if len(layer.leaves) > 1:
                square = square + jnp.square((ones * vectors).sum(0)).sum()
            total = total + square.astype(total.dtype)
        return total

    def in_layers(self, blocks: Blocks) -> Blocks:
        """The blocks with 0 for the leaves that are in no layer."""
        inside = {leaf for layer in self.layers for leaf in layer.leaves}
        leaves = self.layout.leaves
        if len(inside) == len(leaves):
            return blocks
        ones = self.layout.some_blocks(
            {leaf: jnp.ones(leaves[leaf].shape, bool) for leaf in inside}
        )
        return tuple(
            jnp.zeros_like(block) if kept is None else jnp.where(kept, block, 0)
            for block, kept in zip(blocks, ones, strict=True)
        )


def make_control_variate(
    per_example: PerExampleLoss,
    layers: tuple[MatrixLayer, ...],
    program: Program,
    fixed_values: dict[int, Any],
    layout: Layout,
    zeros: Blocks,
    evaluate: Callable[..., ProgramValues],
    origin: Blocks,
) -> ControlVariate:
    """The control variate of a loss.

    Args:
        per_example: the loss as a sum over examples.
        layers: its layers as matrices.
        program: the program of the loss.
        fixed_values: the values that no displacement changes, by number.
        layout: the layout of the leaves of its sums.
        zeros: a sum of zero.
        evaluate: `evaluate(u, sign=None)`: the values of the program at ±u.
        origin: the displacement 0.
    """
    examine = examine_examples(
        per_example, layers, program, fixed_values, layout.dtype, evaluate
    )
    baselines = examine(origin)[1].losses
    return ControlVariate(
        examine=examine,
        layers=layers,
        layout=layout,
        zeros=zeros,
        baselines=jnp.where(jnp.isfinite(baselines), baselines, 0),
    )


def add_control_variate(
    control_variate: ControlVariate,
    total: Sums,
    draws: Blocks,
    leaves: PyTree,
    signs: jax.Array,
    real: jax.Array | None,
    outputs: ExampleOutputs,
) -> Sums:
    """`total` + ΣC over draws (p, g) with signs (k, p or 1).

    Only draws that are `real` (k, p, g) count, the others are padding. `leaves` are the
    draws as a tree.
    """
    moves = jax.tree.leaves(leaves)
    # Failures are masked for each example, so that the others keep their terms of C. An
    # example whose rows are not finite in one layer has no term in any layer.
    counts = jnp.isfinite(outputs.losses)
    if real is not None:
        counts &= real[..., None]
    for layer, basis in zip(control_variate.layers, outputs.bases, strict=True):
        basis = layer.fixed_basis or basis
        assert basis is not None
        counts &= basis.finite
    losses = outputs.losses - control_variate.baselines
    sign = signs.astype(losses.dtype)[..., None, None]
    losses = jnp.where(counts, sign * losses, 0)
    whole = losses.sum((0, 3))
    added = control_variate.in_layers(
        tuple(jnp.tensordot(whole.astype(block.dtype), block, 2) for block in draws)
    )
    blocks = jax.tree.map(jnp.add, total.blocks, added)
    layers: list[Any] = list(total.layers)
    for place, layer in enumerate(control_variate.layers):
        own = tuple(moves[leaf] for leaf in layer.leaves)
        if layer.fixed_basis is not None:
            products = outputs.products[place]
            found = _fixed_rows(layer, layer.fixed_basis, own, losses, products)
            layers[place] = layers[place] + found
            continue
        basis = outputs.bases[place]
        assert basis is not None
        parts: dict[int, jax.Array] = {}
        # One sign at a time, as a stack of the rows would be a copy.
        for k, of_sign in enumerate(losses):
            one = jax.tree.map(lambda leaf, k=k: leaf[k], basis)
            seen = _seen(layer, one, own, of_sign)
            parts = control_variate.parts(layer, one, seen)
            blocks = control_variate.with_parts(blocks, parts)
        if any(control_variate.layout.apart):
            # One layer at a time, so that not all sums of a chunk are in memory.
            wait = zero_after(parts)
            moves = [move + wait.astype(move.dtype) for move in moves]
    return Sums(blocks, tuple(layers))


def _fixed_rows(
    layer: MatrixLayer,
    basis: RowBasis,
    moves: tuple[jax.Array, ...],
    losses: jax.Array,
    products: jax.Array | None,
) -> jax.Array:
    """The vᵢ of a layer with fixed rows, (B, T, o), for losses ±(sᵢ - bᵢ)."""
    scaled = over_squared_norms(basis, -losses.sum(0)).astype(moves[0].dtype)
    if products is None:
        kernels = jax.vmap(jax.vmap(layer.matrix))(moves[0])
        # A single einsum picks the order with the fewest operations.
        found = jnp.einsum("pgb,btn,pgno->bto", scaled, basis.rows, kernels)
    else:  # the products with u are those of the sign 1
        found = jnp.einsum("pgb,pgbo->bo", scaled, products[0])[:, None]
    for bias in moves[1:]:
        bias = jax.vmap(jax.vmap(layer.vector))(bias)
        found = found + jnp.einsum("pgb,bt,pgo->bto", scaled, basis.ones, bias)
    return found


def _seen(
    layer: MatrixLayer,
    basis: RowBasis,
    moves: tuple[jax.Array, ...],
    losses: jax.Array,
) -> jax.Array:
    """The vᵢ of a layer whose rows differ between draws, (p, g, B, T, o)."""
    kernels = jax.vmap(jax.vmap(layer.matrix))(moves[0])
    rows = basis.rows.reshape(*basis.rows.shape[:2], -1, basis.rows.shape[-1])
    found = (rows @ kernels).reshape(*basis.rows.shape[:-1], -1)
    for bias in moves[1:]:
        bias = jax.vmap(jax.vmap(layer.vector))(bias)
        found = found + basis.ones[..., None] * bias[:, :, None, None]
    scaled = over_squared_norms(basis, -losses).astype(found.dtype)
    return found * scaled[..., None, None]
