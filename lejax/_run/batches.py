"""Where the batches of a run come from, and how a compiled loop takes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lejax._internal.types import PyTree

# A stack is at most so large, if it can be: on the host, and again on the device.
STACKED_BYTES = 2**26


class Block(NamedTuple):
    """Batches for at most `size` updates, as arrays to be passed to a compiled loop.

    Of an iterable they are stacked on a leading axis, whose length goes by shapes alone
    so that the loop is compiled once: what is left of it repeats the last batch.
    """

    batches: PyTree
    size: int


def make_blocks(
    batch: PyTree, batches: Any, num_updates: int, size: int
) -> Iterator[Block]:
    """One batch for ever, which is no array of a block; or one for each update."""
    if batches is None:
        return itertools.repeat(Block(None, size))
    if batch is not None:
        raise ValueError(
            "batch and batches are both given, but an update takes one batch; pass "
            "batch= for the same in every update, or batches= for others."
        )
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be an iterable of batches, got {batches!r}; "
            "pass a list or a generator of them, or one batch as batch=."
        )
    if isinstance(batches, tuple):
        shapes = [getattr(leaf, "shape", ()) for leaf in batches]
        # Of batches alike, or of a last one that is shorter.
        if len({shape[:1] for shape in shapes}) == 1 < len(set(shapes)):
            raise ValueError(
                f"batches={tuple(shapes)}, by shapes, would be {len(shapes)} batches, "
                "each of another kind; pass one batch as batch=(...), or a list or a "
                "generator of such tuples as batches=."
            )
    return _stacks(itertools.islice(batches, num_updates), size)


def _stacks(batches: Iterable[PyTree], size: int) -> Iterator[Block]:
    """Of at most `size`; a batch of other shapes than the last begins a new one."""
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
            f"batches must give trees of arrays and numbers, got {leaf!r} in one; "
            "leave it out, or pass one batch alone as batch=."
        )
    return array
