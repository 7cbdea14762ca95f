"""Gaussian draws in independent units, evaluated in chunks and folded into a sum.

A unit is one displacement √τ ε with ε ~ N(0, I), used once, or as an antithetic pair
±√τ ε. Its noise depends on the key and on its number alone: neither the chunk size nor
the number of devices changes a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._objective import Coordinates
from lejax._trees import PyTree, scaled

# The default chunk, in numbers of its noise: on a CPU it should stay in the cache, an
# accelerator wants more work at once. The units bound what the loss needs for each.
CHUNK_NUMBERS_CPU = 2**20
CHUNK_NUMBERS_ACCELERATOR = 2**25
CHUNK_UNITS = 2**10


class Draws(NamedTuple):
    """p units evaluated with k signs: k = 2 for antithetic pairs, 1 otherwise.

    Attributes:
        displacements: leaves (p, ...), of the positive sign.
        signs: (k,), the factors ±1 under which each was used.
        outputs: leaves (k, p, ...), what was evaluated.
        valid: (p,), False for units that only fill up a device's share.
    """

    displacements: PyTree
    signs: jax.Array
    outputs: PyTree
    valid: jax.Array

    def moment(self, coefficients: jax.Array) -> PyTree:
        """Σ c (X - x) over all draws, for coefficients (k, p)."""
        signed = self.signs.astype(coefficients.dtype) @ coefficients
        return jax.tree.map(
            lambda leaf: jnp.tensordot(signed.astype(leaf.dtype), leaf, 1),
            self.displacements,
        )


def fold_draws(
    key: jax.Array,
    space: Coordinates,
    variance: Any,
    evaluate: Callable[[PyTree], PyTree],
    summarise: Callable[[Draws], PyTree],
    merge: Callable[[PyTree, PyTree], PyTree],
    initial: PyTree,
    *,
    num_samples: int,
    antithetic: bool,
    chunk_size: int | None,
    axis_name: str | None = None,
) -> PyTree:
    """Fold `summarise` over `num_samples` evaluations, in O(chunk) memory.

    `evaluate` maps one displacement, in the coordinates of `space`, to what is kept of
    it. An odd sample out of pairs is a unit of its own. Under `axis_name` each member
    folds its share of the units only.
    """
    scale = jnp.sqrt(variance)

    def chunk(first: Any, stop: int, size: int, signs: tuple[float, ...]) -> PyTree:
        units = first + jnp.arange(size)
        displacements = jax.vmap(
            lambda unit: scaled(space.noise(jax.random.fold_in(key, unit)), scale)
        )(units)
        factors = jnp.asarray(signs)
        of_units = jax.vmap(lambda s, u: evaluate(scaled(u, s)), in_axes=(None, 0))
        outputs = jax.vmap(of_units, in_axes=(0, None))(factors, displacements)
        return summarise(Draws(displacements, factors, outputs, units < stop))

    total = initial
    if axis_name is not None:
        # Under shard_map a scan wants a carry that varies over the axis from the start.
        nothing = 0 * jax.lax.axis_index(axis_name)
        total = jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), total)
    for start, stop, signs in _blocks(num_samples, antithetic):
        share, offset = stop - start, start
        if axis_name is not None:
            share = -(-share // jax.lax.axis_size(axis_name))
            offset = start + share * jax.lax.axis_index(axis_name)
        size = _chunk_units(share, len(signs), space.zeros, chunk_size)
        full = share // size

        def body(total, first, stop=stop, size=size, signs=signs):
            return merge(total, chunk(first, stop, size, signs)), None

        total, _ = jax.lax.scan(body, total, offset + size * jnp.arange(full))
        if share % size:
            rest = chunk(offset + full * size, stop, share % size, signs)
            total = merge(total, rest)
    return total


def _blocks(
    num_samples: int, antithetic: bool
) -> Iterator[tuple[int, int, tuple[float, ...]]]:
    """The numbers of the first unit and past the last, and the signs of its members."""
    pairs = num_samples // 2 if antithetic else 0
    if pairs:
        yield 0, pairs, (1.0, -1.0)
    if num_samples > 2 * pairs:
        yield pairs, num_samples - pairs, (1.0,)


def _chunk_units(share: int, signs: int, zeros: PyTree, chunk_size: int | None) -> int:
    """How many units a chunk holds: at most the limit, and chunks of equal size."""
    if chunk_size is None:
        on_cpu = jax.default_backend() == "cpu"
        numbers = CHUNK_NUMBERS_CPU if on_cpu else CHUNK_NUMBERS_ACCELERATOR
        limit = min(CHUNK_UNITS, numbers // max(1, optax.tree.size(zeros)))
    else:
        limit = chunk_size // signs
    limit = min(max(limit, 1), share)
    return -(-share // -(-share // limit))
