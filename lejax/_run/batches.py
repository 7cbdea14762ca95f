"""The batches of a run, stacked in blocks for a compiled loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lejax._internal.types import PyTree

# The largest stack of batches: once on the host, and again on the device.
STACKED_BYTES = 2**26


class Block(NamedTuple):
    """Batches for at most `size` updates, as arrays for a compiled loop.

    They are stacked on a leading axis. Its length depends on shapes alone, so that the
    loop is compiled once; a block that is not full repeats its last batch.
    """

    batches: PyTree
    size: int


def make_blocks(
    batch: PyTree, batches: Any, num_updates: int, size: int
) -> Iterator[Block]:
    """Blocks of `batches`; without them, blocks without arrays for the one `batch`."""
    if batches is None:
        return itertools.repeat(Block(None, size))
    if batch is not None:
        raise ValueError(
            "batch and batches are both given, and an update takes one batch; pass "
            "batch= to use one batch in every update, or batches= for one in each."
        )
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be an iterable of batches, got {batches!r}; "
            "pass a list or a generator of them, or one batch as batch=."
        )
    if isinstance(batches, tuple):
        shapes = [getattr(leaf, "shape", ()) for leaf in batches]
        # Arrays of one length and several shapes are the parts of one batch.
        if len({shape[:1] for shape in shapes}) == 1 < len(set(shapes)):
            raise ValueError(
                f"batches is a tuple of arrays of shapes {tuple(shapes)}, which would "
                f"be {len(shapes)} batches of different shapes; pass one batch as "
                "batch=(...), or a list or a generator of such tuples as batches=."
            )
    return _stacks(itertools.islice(batches, num_updates), size)


def _stacks(batches: Iterable[PyTree], size: int) -> Iterator[Block]:
    """Blocks of at most `size` batches; a batch of other shapes begins a new block."""
    pending: list[PyTree] = []
    for batch in batches:
        arrays = jax.tree.map(_as_array, batch)
        if pending and signature(arrays) != signature(pending[0]):
            yield _stacked(pending, size)
            pending = []
        pending.append(arrays)
        if len(pending) == _room(arrays, size):
            yield _stacked(pending, size)
            pending = []
    if pending:
        yield _stacked(pending, size)


def _room(arrays: PyTree, size: int) -> int:
    numbers = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    return max(1, min(size, STACKED_BYTES // max(numbers, 1)))


def _stacked(pending: list[PyTree], size: int) -> Block:
    room = _room(pending[0], size)
    padded = pending + pending[-1:] * (room - len(pending))

    def stack(*leaves: Any) -> Any:
        on_device = any(isinstance(leaf, jax.Array) for leaf in leaves)
        return (jnp if on_device else np).stack(leaves)

    return Block(jax.tree.map(stack, *padded), len(pending))


def signature(arrays: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(arrays)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if not (array.dtype == bool or jnp.issubdtype(array.dtype, np.number)):
        raise TypeError(
            f"batches must give trees of arrays and numbers, got {leaf!r} in one of "
            "them; leave it out, or pass a single batch as batch=."
        )
    return array
