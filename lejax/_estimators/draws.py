"""Gaussian draws in independent units, evaluated in chunks and folded into a sum.

A unit is one draw √τ ε, ε ~ N(0, I), or several that are the same numbers under random
signs; each is used once, or as an antithetic pair ±√τ ε. The noise of a unit depends on
the key and on its number alone: neither the chunk size nor the number of devices
changes a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._internal.mesh_axes import member, members, varying
from lejax._internal.trees import is_large, scaled, zero_after
from lejax._internal.types import PyTree
from lejax._spaces.space import Space

# The default chunk, in numbers of its noise: on a CPU it should stay in the cache, but
# a few large draws at once keep all cores busy; an accelerator wants more work at once.
# The units bound what the loss needs for each.
CHUNK_NUMBERS_CPU = 2**17
FEW_UNITS, FEW_NUMBERS = 8, 2**20
CHUNK_NUMBERS_ACCELERATOR = 2**25
CHUNK_UNITS = 2**10

# By default a draw serves under at most so many signs: they save most of what drawing
# costs. d numbers under so many signs add 2 signs/d to the relative variance of the
# displacement, and the standard error needs so many independent units. All that share a
# draw are held at once.
MAX_SIGNS = 10
NUMBERS_PER_SIGN = 100
LEAST_UNITS = 30
NUMBERS_AT_ONCE = 2**22

# What a single unit adds is not always known; the noise is then told from so many
# groups of units, where there are as many.
NUM_GROUPS = 8


class Draws(NamedTuple):
    """p units of g draws, evaluated with k signs: 2 for antithetic pairs, 1 otherwise.

    Attributes:
        displacements: leaves (p, g, ...), of the positive sign.
        signs: (k,), the factors ±1 under which each was used.
        outputs: leaves (k, p, g, ...), what was evaluated.
        valid: (p, 1), False for units that only fill up a device's share.
        numbers: (k, p, g), which of the J evaluations each was.
    """

    displacements: PyTree
    signs: jax.Array
    outputs: PyTree
    valid: jax.Array
    numbers: jax.Array

    def signed(self, coefficients: jax.Array) -> jax.Array:
        """Σ ±c over the signs, (p, g), for coefficients (k, p, g)."""
        return jnp.tensordot(self.signs.astype(coefficients.dtype), coefficients, 1)

    def moment(self, coefficients: jax.Array) -> PyTree:
        """Σ c (X - x) over all draws, for coefficients (k, p, g)."""
        signed = self.signed(coefficients)
        return jax.tree.map(
            lambda leaf: jnp.tensordot(signed.astype(leaf.dtype), leaf, 2),
            self.displacements,
        )

    def unit_moments(self, coefficients: jax.Array) -> PyTree:
        """The same over the draws of every unit: leaves (p, ...)."""
        signed = self.signed(coefficients)
        return jax.tree.map(
            lambda leaf: jnp.einsum("pg,pg...->p...", signed.astype(leaf.dtype), leaf),
            self.displacements,
        )


class Plan(NamedTuple):
    """How many evaluations there are, and how they are made.

    Attributes:
        num_samples: J, of the loss.
        antithetic: whether they come in pairs; an odd one out is a unit of its own.
        chunk_size: how many run at once, None for what suits the device.
        signs_per_draw: how many draws, or pairs, share one under random signs.
        num_chunks: how many chunks there should be at least.
    """

    num_samples: int
    antithetic: bool
    chunk_size: int | None
    signs_per_draw: int = 1
    num_chunks: int = 1


def fold_draws(
    key: jax.Array,
    space: Space,
    variance: Any,
    evaluate: Callable[[PyTree, float, jax.Array], PyTree],
    absorb: Callable[[PyTree, Draws], PyTree],
    initial: PyTree,
    plan: Plan,
    *,
    groups: bool = False,
) -> PyTree:
    """Fold `absorb` over all evaluations, in O(chunk) memory.

    `evaluate(u, sign, number)` is what is kept of the displacement ±u in these
    coordinates, which is that of this evaluation among all J, and `absorb(total,
    draws)` what the total is after these draws.
    The members of a named axis each fold a share of the units, and get their own sum.

    With `groups` it is `NUM_GROUPS` totals, or some more, of groups of units, on a
    leading axis. As many are made at once as a chunk holds.
    """
    scale = jnp.sqrt(variance)
    large = is_large(space.zeros)

    def draw(units: jax.Array, copies: int) -> PyTree:
        noise = jax.vmap(
            lambda unit: space.noise(jax.random.fold_in(key, unit), copies)
        )(units)
        return scaled(noise, scale)

    def chunk(total: PyTree, first: Any, size: int, block: _Block) -> PyTree:
        units = first + jnp.arange(size, dtype=jnp.int32)
        displacements = draw(units, block.copies)
        outputs: list[PyTree] = []
        numbers = _numbers(units, block)
        # A loop over the signs, not a vmap: what they have in common is computed once.
        for k, sign in enumerate(block.signs):
            evaluated = jax.vmap(lambda u, n, sign=sign: evaluate(u, sign, n))
            outputs.append(jax.vmap(evaluated)(displacements, numbers[k]))
            if large:
                # Drawn again rather than stored while f is evaluated.
                after = zero_after(outputs[-1]).astype(units.dtype)
                displacements = draw(units + after, block.copies)
        draws = Draws(
            displacements,
            jnp.asarray(block.signs),
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs),
            (units < block.stop)[:, None],
            numbers,
        )
        return absorb(total, draws)

    def fold(total: PyTree, first: Any, count: int, block: _Block) -> PyTree:
        # Chunks of equal size, at most the limit.
        size = -(-count // -(-count // _limit(block, space.zeros, plan)))
        full = count // size
        if full == 1:
            total = chunk(total, first, size, block)
        else:
            total, _ = jax.lax.scan(
                lambda total, first: (chunk(total, first, size, block), None),
                total,
                first + size * jnp.arange(full, dtype=jnp.int32),
            )
        if count % size:
            total = chunk(total, first + full * size, count % size, block)
        return total

    initial = varying(initial, space.axis_name)  # as the carry of a scan must be
    if groups:
        return _by_groups(fold, initial, space, plan)
    total = initial
    for block in _blocks(plan):
        total = fold(total, *_share(block, space.axis_name), block)
    return total


def _by_groups(
    fold: Callable[..., PyTree], initial: PyTree, space: Space, plan: Plan
) -> PyTree:
    """The totals of groups; `fold(total, first, count, block)` adds so many units."""
    totals: list[PyTree] = []
    for block in _blocks(plan):
        offset, share = _share(block, space.axis_name)
        count = _num_groups(share)
        size = share // count
        at_once = largest_divisor(count, _limit(block, space.zeros, plan) // size)

        def group(i, offset=offset, size=size, block=block):
            return fold(initial, offset + size * i, size, block)

        numbers = jnp.arange(count, dtype=jnp.int32)
        if at_once == 1:
            totals.append(jax.lax.map(group, numbers))
        else:
            # Not by `batch_size` of `map`, which fails at leaves without any number.
            found = jax.lax.map(jax.vmap(group), numbers.reshape(-1, at_once))
            totals.append(
                jax.tree.map(
                    lambda leaf, n=count: leaf.reshape(n, *leaf.shape[2:]), found
                )
            )
        if share % count:
            rest = fold(initial, offset + count * size, share % count, block)
            totals.append(jax.tree.map(lambda leaf: leaf[None], rest))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *totals)


def own_evaluations(plan: Plan, axis_name: str | None, *, of_groups: bool) -> int:
    """How many one member makes, with those that only fill up its share.

    Of groups, those of the largest.
    """
    shares = [
        (_share(block, axis_name)[1], len(block.signs) * block.copies)
        for block in _blocks(plan)
    ]
    if not of_groups:
        return sum(share * each for share, each in shares)
    return max(
        max(share // _num_groups(share), share % _num_groups(share)) * each
        for share, each in shares
    )


class _Block(NamedTuple):
    """Units of one kind.

    From which number to which, signs, copies of a draw, evaluations before it.
    """

    start: int
    stop: int
    signs: tuple[float, ...]
    copies: int
    evaluations: int


def _blocks(plan: Plan) -> Iterator[_Block]:
    pairs = plan.num_samples // 2 if plan.antithetic else 0
    singles = plan.num_samples - 2 * pairs
    start = before = 0
    for count, signs in ((pairs, (1.0, -1.0)), (singles, (1.0,))):
        if count:
            copies = largest_divisor(count, plan.signs_per_draw)
            yield _Block(start, start + count // copies, signs, copies, before)
            start += count // copies
            before += count * len(signs)


def _numbers(units: jax.Array, block: _Block) -> jax.Array:
    """The evaluations of these units among all J, (k, p, g)."""
    signs, copies = len(block.signs), block.copies
    within = jnp.arange(signs * copies, dtype=units.dtype).reshape(signs, 1, copies)
    first = (units - block.start) * (signs * copies)
    return block.evaluations + within + first[:, None]


def _num_groups(share: int) -> int:
    """Groups are of equal size, if that can be; else what is left is one more."""
    count = largest_divisor(share, 2 * NUM_GROUPS)
    return count if count >= NUM_GROUPS else min(share, NUM_GROUPS)


def default_signs(zeros: PyTree, draws: int, examples: int = 1) -> int:
    """How many of so many draws, or pairs, share one where nobody says it.

    A draw may be of so many examples, of which each sees its own numbers.
    """
    size = max(1, optax.tree.size(zeros))
    by_dimension = min(size // examples // NUMBERS_PER_SIGN, NUMBERS_AT_ONCE // size)
    return max(1, min(MAX_SIGNS, by_dimension, draws // LEAST_UNITS))


def largest_divisor(count: int, limit: int) -> int:
    """The largest divisor of `count` that is at most `limit`, and at least 1."""
    return next(d for d in range(max(1, min(count, limit)), 0, -1) if count % d == 0)


def chunk_limit(zeros: PyTree) -> int:
    """How many draws run at once: what the cache holds or a few large ones, or more."""
    on_cpu = jax.default_backend() == "cpu"
    numbers = CHUNK_NUMBERS_CPU if on_cpu else CHUNK_NUMBERS_ACCELERATOR
    size = max(1, optax.tree.size(zeros))
    few = max(1, min(FEW_UNITS, FEW_NUMBERS // size))
    return min(CHUNK_UNITS, max(few, numbers // size))


def _limit(block: _Block, zeros: PyTree, plan: Plan) -> int:
    """How many units a chunk holds at most."""
    draws = (
        plan.chunk_size // len(block.signs) if plan.chunk_size else chunk_limit(zeros)
    )
    most = (block.stop - block.start) // plan.num_chunks
    return max(1, min(draws // block.copies, most))


def _share(block: _Block, axis_name: str | None) -> tuple[Any, int]:
    """The first unit of a member of the axis, and how many it has."""
    share = -(-(block.stop - block.start) // members(axis_name))
    return block.start + share * member(axis_name), share
