"""The plan of an update: how many draws share numbers, how many run at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from lejax._estimators.units import Part, Units
from lejax._internal.blocks import Blocks
from lejax._internal.mesh_axes import members

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
# groups of units, or some more, where there are as many.
NUM_GROUPS = 8

# A chunk may have so many times as many draws if that saves a loop.
ROOM = 4

# Chunks of one size compile to one loop. What does not count, to fill the last of them,
# is at most this share of the work.
PADDING = 0.05


class Plan(NamedTuple):
    """How many evaluations there are, and how they are made.

    Attributes:
        num_samples: J.
        antithetic: whether they come in pairs; an odd one out is a unit of its own.
        chunk_size: how many run at once, None for what suits the device.
        signs_per_draw: how many draws, or pairs, share one under random signs.
    """

    num_samples: int
    antithetic: bool
    chunk_size: int | None
    signs_per_draw: int = 1


def make_units(
    plan: Plan,
    zeros: Blocks,
    axis_name: str | None,
    *,
    groups: bool = False,
    least_chunks: int = 1,
    exact: bool = False,
) -> Units:
    """The evaluations of a plan; `exact` where none may fill up.

    With `groups` there are `NUM_GROUPS` of them, or some more, if there are as many
    units; and so for `least_chunks`.
    """
    count = 1 if axis_name is None else members(axis_name)
    pairs = plan.num_samples // 2 if plan.antithetic else 0
    singles = plan.num_samples - 2 * pairs
    parts: list[Part] = []
    start = 0
    for number, signs in ((pairs, 2), (singles, 1)):
        if not number:
            continue
        copies = largest_divisor(number, plan.signs_per_draw)
        units, each = number // copies, signs * copies
        # The odd one out may be the first of a pair of which the second is idle.
        odd = (
            signs == 2
            and singles == 1
            and not exact
            and each - 1 <= PADDING * plan.num_samples
        )
        stop = start + units + odd
        share = -(-(stop - start) // count)
        limit = _draws_at_once(plan, zeros, signs) // copies
        limit = max(1, min(limit, units // least_chunks))
        if groups and not plan.chunk_size and units <= 2 * NUM_GROUPS * ROOM * limit:
            # A loop less is worth some room: groups of one chunk.
            limit *= ROOM
        offset = 0
        for length, *how in _divided(share, limit, groups=groups, exact=exact):
            parts.append(
                Part(start + offset, stop, share, length, signs, copies, odd, *how)
            )
            offset += length
        start = stop
        if odd:
            break
    return Units(tuple(parts), axis_name, count)


def _divided(
    units: int, limit: int, *, groups: bool, exact: bool
) -> list[tuple[int, int, int, int, int]]:
    """Parts of units: how many, and their groups, chunks, size, and groups at once."""
    slack = 0 if exact else int(PADDING * units)
    if not groups:
        chunks = -(-units // limit)
        size = -(-units // chunks)
        if chunks * size - units <= slack:
            return [(units, 1, chunks, size, 1)]
        rest = units % size
        return [(units - rest, 1, chunks - 1, size, 1), (rest, 1, 1, rest, 1)]
    least = min(units, NUM_GROUPS)
    for counts in (
        range(least, min(units, 2 * NUM_GROUPS) + 1),
        range(2 * NUM_GROUPS + 1, min(units, 4 * NUM_GROUPS) + 1),
    ):
        found: list[tuple[tuple[int, int], Any]] = []
        for count in counts:
            in_group = -(-units // count)
            for chunks in range(-(-in_group // limit), in_group + 1):
                size = -(-in_group // chunks)
                filled = count * chunks * size - units
                if filled <= slack:
                    # Few steps of a loop, then little that fills up.
                    at_once = largest_divisor(count, limit // size)
                    at_once = at_once if chunks == 1 else 1
                    cost = count // at_once * chunks, filled
                    found.append((cost, (units, count, chunks, size, at_once)))
                    break
        if found:
            return [min(found)[1]]
    # Groups of equal size, and a rest.
    rest = units % NUM_GROUPS
    return [
        *_divided(units - rest, limit, groups=True, exact=exact),
        *_divided(rest, limit, groups=False, exact=exact),
    ]


def _draws_at_once(plan: Plan, zeros: Blocks, signs: int) -> int:
    return plan.chunk_size // signs if plan.chunk_size else chunk_limit(zeros)


def chunk_limit(zeros: Blocks) -> int:
    """How many draws run at once: what the cache holds or a few large ones, or more."""
    on_cpu = jax.default_backend() == "cpu"
    numbers = CHUNK_NUMBERS_CPU if on_cpu else CHUNK_NUMBERS_ACCELERATOR
    size = max(1, sum(block.size for block in zeros))
    few = max(1, min(FEW_UNITS, FEW_NUMBERS // size))
    return min(CHUNK_UNITS, max(few, numbers // size))


def default_signs(zeros: Blocks, draws: int, examples: int = 1) -> int:
    """How many of so many draws, or pairs, share one where nobody says it.

    A draw may be of so many examples, of which each sees its own numbers.
    """
    size = max(1, sum(block.size for block in zeros))
    by_dimension = min(size // examples // NUMBERS_PER_SIGN, NUMBERS_AT_ONCE // size)
    return max(1, min(MAX_SIGNS, by_dimension, draws // LEAST_UNITS))


def largest_divisor(count: int, limit: int) -> int:
    """The largest divisor of `count` that is at most `limit`, and at least 1."""
    return next(d for d in range(max(1, min(count, limit)), 0, -1) if count % d == 0)
