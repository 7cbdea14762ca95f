"""The plan of an update: how many draws share numbers, how many run at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from lejax._estimators.units import Part, Units
from lejax._internal.blocks import Blocks
from lejax._internal.mesh_axes import members

# The default chunk, in numbers of its noise. On a CPU it should fit into the cache,
# except that a few large draws at once keep all cores busy. An accelerator needs more
# work at once. CHUNK_UNITS bounds the memory of the loss.
CHUNK_NUMBERS_CPU = 2**17
FEW_UNITS, FEW_NUMBERS = 8, 2**20
CHUNK_NUMBERS_ACCELERATOR = 2**25
CHUNK_UNITS = 2**10

# Bounds of the default signs per draw. MAX_SIGNS saves most of the cost of drawing. In
# d dimensions, signs add 2 signs/d to the relative variance of the displacement, hence
# NUMBERS_PER_SIGN. The standard error needs LEAST_UNITS independent units. All samples
# that share a draw are in memory at once, hence NUMBERS_AT_ONCE.
MAX_SIGNS = 10
NUMBERS_PER_SIGN = 100
LEAST_UNITS = 30
NUMBERS_AT_ONCE = 2**22

# If the contributions of single units are not known, the noise is estimated from this
# many groups of units, or a few more, if there are enough units.
NUM_GROUPS = 8

# A chunk may grow by this factor if that saves a loop.
ROOM = 4

# Chunks of one size compile to one loop. The padding of the last chunk is at most this
# share of the work.
PADDING = 0.05


class Plan(NamedTuple):
    """The number of evaluations, and how they are made.

    Attributes:
        num_samples: J.
        antithetic: True for pairs; the last of an odd number is a unit of its own.
        chunk_size: how many run at once; None for the default of the device.
        signs_per_draw: how many samples, or pairs, share one draw under random signs.
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
    """The units of a plan; with `exact`, without padding.

    With `groups`, there are at least `NUM_GROUPS` groups, if there are enough units;
    and likewise at least `least_chunks` chunks.
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
        # An odd sample may be the first of a pair whose second is padding.
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
            # Groups of one chunk save a loop, which is worth some memory.
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
    """Parts, each as its units, groups, chunks, size, and groups at once."""
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
                    # First few steps of a loop, then little padding.
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
    """The default number of draws that run at once, for this device."""
    on_cpu = jax.default_backend() == "cpu"
    numbers = CHUNK_NUMBERS_CPU if on_cpu else CHUNK_NUMBERS_ACCELERATOR
    size = max(1, sum(block.size for block in zeros))
    few = max(1, min(FEW_UNITS, FEW_NUMBERS // size))
    return min(CHUNK_UNITS, max(few, numbers // size))


def default_signs(zeros: Blocks, draws: int, examples: int = 1) -> int:
    """The default signs per draw, for this many samples or pairs.

    With per-example noise, a draw holds the numbers of all `examples`.
    """
    size = max(1, sum(block.size for block in zeros))
    by_dimension = min(size // examples // NUMBERS_PER_SIGN, NUMBERS_AT_ONCE // size)
    return max(1, min(MAX_SIGNS, by_dimension, draws // LEAST_UNITS))


def largest_divisor(count: int, limit: int) -> int:
    """The largest divisor of `count` that is at most `limit`, and at least 1."""
    return next(d for d in range(max(1, min(count, limit)), 0, -1) if count % d == 0)
