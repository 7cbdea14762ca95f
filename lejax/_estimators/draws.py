"""Draws, and passes over them: one that evaluates, one that combines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.units import Part, Units, joined
from lejax._internal.blocks import Blocks
from lejax._internal.mesh_axes import varying
from lejax._internal.random import Noise
from lejax._internal.trees import inner, is_large
from lejax._internal.types import PyTree
from lejax._spaces.space import Space

# Noise of at most this many numbers is kept between passes; more is drawn again.
KEPT_NUMBERS = 2**24


class Draws(NamedTuple):
    """The displacements of an update, still to be drawn.

    Attributes:
        key: of the update.
        space: the coordinates.
        scale: √τ.
        units: the evaluations, by unit.
    """

    key: jax.Array
    space: Space
    scale: jax.Array
    units: Units

    def noise(self, part: Part, number: jax.Array) -> Noise:
        """The noise of the unit with this number."""
        return self.space.noise(jax.random.fold_in(self.key, number), part.copies)

    def displacements(self, part: Part, noise: Noise) -> Blocks:
        """The displacements of one unit, (g, ...), with the positive sign."""
        drawn = noise.copies(part.copies)
        return tuple(block * self.scale.astype(block.dtype) for block in drawn)

    def drawn(self, part: Part, units: Noise | jax.Array) -> tuple[Noise, Blocks]:
        """The noise and the displacements of units, from kept noise or from numbers."""
        noise = units
        if not isinstance(noise, Noise):
            noise = jax.vmap(lambda number: self.noise(part, number))(units)
        return noise, jax.vmap(lambda one: self.displacements(part, one))(noise)

    def are_kept(self) -> bool:
        """True if the noise of one pass is kept for the next."""
        numbers = sum(part.units for part in self.units.parts) * sum(
            block.size for block in self.space.zeros
        )
        return numbers <= KEPT_NUMBERS


def over_units(
    part: Part,
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    zeros: PyTree,
    xs: PyTree,
) -> tuple[PyTree, PyTree]:
    """Scan `body(total, xs)` over the chunks of a part, in O(chunk) memory.

    `xs` have a leading axis of units. `body` adds a chunk to the total of its group,
    which starts at `zeros`, and returns the total and an output for each unit. The
    result is the totals by group, and the outputs by unit.
    """
    if not jax.tree.leaves(zeros):  # without totals, groups do not matter
        part = part._replace(
            groups=1,
            chunks=part.groups // part.at_once * part.chunks,
            size=part.at_once * part.size,
            at_once=1,
        )

    def cut(*shape: int) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), xs)

    def flat(kept: PyTree, axes: int) -> PyTree:
        return jax.tree.map(
            lambda x: x.reshape(math.prod(x.shape[:axes]), *x.shape[axes:]), kept
        )

    if part.chunks == 1:
        steps = part.groups // part.at_once
        groups = jax.vmap(lambda xs: body(zeros, xs))
        if steps == 1:
            sums, kept = groups(cut(part.groups, part.size))
            return sums, flat(kept, 2)
        sums, kept = jax.lax.map(groups, cut(steps, part.at_once, part.size))
        return flat(sums, 2), flat(kept, 3)
    if part.groups == 1:
        sums, kept = jax.lax.scan(body, zeros, cut(part.chunks, part.size))
        return jax.tree.map(lambda leaf: leaf[None], sums), flat(kept, 2)
    sums, kept = jax.lax.map(
        lambda xs: jax.lax.scan(body, zeros, xs),
        cut(part.groups, part.chunks, part.size),
    )
    return sums, flat(kept, 3)


class Chunk(NamedTuple):
    """A chunk of evaluations: p units of g draws, under k signs.

    Attributes:
        u: the displacements (p, g, ...) with the positive sign.
        signs: (k, p or 1).
        outputs: of the function, (k, p, g, ...).
        real: which evaluations count, (k, p, g); None if all do.
        beside: further inputs of the units.
    """

    u: Blocks
    signs: jax.Array
    outputs: PyTree
    real: jax.Array | None
    beside: PyTree


class Evaluated(NamedTuple):
    """The result of a pass over all units.

    Attributes:
        values: by part, the output for each unit.
        sums: the totals of all groups, on a leading axis.
        noise: by part, the noise of each unit; None if it is drawn again.
    """

    values: list[PyTree]
    sums: PyTree
    noise: list[Noise | None]


def evaluate(
    draws: Draws,
    fn: Callable[[Blocks, Any], PyTree],
    absorb: Callable[..., tuple[PyTree, PyTree]],
    zeros: PyTree = (),
    *,
    beside: list[PyTree] | None = None,
    known: list[Noise | None] | None = None,
    keep: bool = False,
) -> Evaluated:
    """Evaluate `fn(u, sign)` at all displacements ±u.

    `absorb(total, chunk)` adds a chunk to a total, which starts at `zeros`, and returns
    the total and an output for each unit, on a leading axis. `beside` holds further
    inputs of the units, by part. `known` is the noise that an earlier pass kept. With
    `keep`, this pass keeps it, unless it is too large.
    """
    large = is_large(draws.space.zeros)
    keep = keep and draws.are_kept() and not large
    found = []
    for place, part in enumerate(draws.units.parts):
        own = draws.units.own_real(part)
        numbers = draws.units.numbers(part)
        kept = known[place] if known else None
        xs = (
            numbers if kept is None else kept,
            own,
            beside[place] if beside else (),
        )
        pair = jnp.asarray((1.0, -1.0)[: part.signs], draws.scale.dtype)
        if large:
            # One sign at a time; noise is drawn again, not stored while f runs.
            xs = jax.tree.map(
                lambda x, k=part.signs: jnp.repeat(x, k, 0), (xs[0],)
            ) + jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), xs[1:])
            each = jnp.tile(pair, part.units)
        else:
            each = jnp.zeros(part.units)

        def body(
            total: PyTree, xs: PyTree, part: Part = part, pair: jax.Array = pair
        ) -> tuple[PyTree, PyTree]:
            (drawn, real, own), sign = xs
            noise, u = draws.drawn(part, drawn)
            units = jax.vmap(jax.vmap(fn, (0, None)), (0, 0 if large else None))
            if large:
                signs = sign[None]
                outputs = jax.tree.map(lambda leaf: leaf[None], units(u, sign))
            elif part.signs == 1:
                signs = pair[:, None]
                outputs = jax.tree.map(lambda leaf: leaf[None], units(u, None))
            else:
                # The vmap over signs is the outer one, so that ±u share products.
                signs = pair[:, None]
                outputs = jax.vmap(units, (None, 0))(u, pair)
            real = None if real is None else jnp.moveaxis(real, 1, 0)
            total, kept = absorb(total, Chunk(u, signs, outputs, real, own))
            return total, (kept, noise if keep else None)

        steps = part._replace(chunks=part.chunks * part.signs) if large else part
        begin = varying(zeros, draws.units.axis_name)
        sums, (kept, noise) = over_units(steps, body, begin, (xs, each))
        if large:
            kept = jax.tree.map(
                lambda x, k=part.signs: x.reshape(-1, k, *x.shape[2:]), kept
            )
        found.append((kept, sums, noise))
    values, sums, noise = map(list, zip(*found, strict=True))
    return Evaluated(values, joined(sums), noise)


class Combined(NamedTuple):
    """Sums over units, each of which contributes v = Σ ±c u.

    Attributes:
        groups: Σv by group, on a leading axis.
        square: Σ|v|².
        cross: Σsv, for the shares s of units; None without shares.
        products: Σ c uuᵀ as a covariance keeps it; None without one.
    """

    groups: Blocks
    square: jax.Array
    cross: Blocks | None
    products: PyTree


def combine(
    draws: Draws,
    noise: list[Noise | None],
    coefficients: jax.Array,
    shares: jax.Array | None = None,
    products: Callable[..., PyTree] | None = None,
    begin: Blocks | None = None,
) -> Combined:
    """Σ c (X - x) over this member's evaluations, for flat coefficients of all.

    `shares` are the shares of all evaluations in the weight, for `Combined.cross`.
    `products(u, v, c)` is Σ c uvᵀ for trees with leaves (n, ...). A sum without groups
    may start at the blocks `begin`.
    """
    space, axis_name = draws.space, draws.units.axis_name
    dtype = coefficients.dtype
    zeros: Any = (
        space.zeros,
        jnp.zeros((), dtype),
        None if shares is None else space.zeros,
        None,
    )
    if products is not None:
        one = jax.tree.map(lambda leaf: leaf[None], space.tree(space.zeros))
        zeros = (*zeros[:3], products(one, one, jnp.zeros(1, dtype)))
    of_shares = draws.units.own(coefficients if shares is None else shares)
    found = []
    for part, own, share, kept in zip(
        draws.units.parts, draws.units.own(coefficients), of_shares, noise, strict=True
    ):
        signed = own[:, 0] - own[:, 1] if part.signs == 2 else own[:, 0]
        xs = (
            draws.units.numbers(part) if kept is None else kept,
            signed,
            share.sum((1, 2)),
            own.sum(1),
        )

        def body(total: PyTree, xs: PyTree, part: Part = part) -> tuple[PyTree, PyTree]:
            drawn, signed, share, either = xs
            _, u = draws.drawn(part, drawn)
            v = tuple(
                jnp.einsum("pg,pg...->p...", signed.astype(block.dtype), block)
                for block in u
            )
            moved = tuple(block.sum(0) for block in v)
            cross = squares = None
            if shares is not None:
                cross = tuple(
                    jnp.tensordot(share.astype(block.dtype), block, 1) for block in v
                )
            if products is not None:
                lines = jax.tree.map(
                    lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]),
                    jax.vmap(jax.vmap(space.tree))(u),
                )
                squares = products(lines, lines, either.ravel())
            added = moved, inner(v, v, dtype), cross, squares
            return optax.tree.add(total, added), ()

        first = zeros if begin is None or found else (begin, *zeros[1:])
        sums, _ = over_units(part, body, varying(first, axis_name), xs)
        found.append(sums)
    groups, *others = joined(found)
    return Combined(groups, *jax.tree.map(lambda leaf: leaf.sum(0), others))
