"""A tree of floats as a few blocks: one flat vector of small leaves, and large leaves.

Every leaf costs some kernels wherever it is drawn, summed or weighted. So samplers work
on one vector of all small leaves. Only the loss gets a tree.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lejax._internal.trees import compute_dtype, is_large, laid_out_as
from lejax._internal.types import PyTree

# The flat vector, if any leaf is in it, then the leaves that are blocks of their own.
Blocks: TypeAlias = tuple[jax.Array, ...]

# In a large tree a leaf with more entries than this is a block of its own. The rule is
# by shapes only, because draws must not depend on how an array is sharded.
LEAST_APART = 2**16


class Layout(NamedTuple):
    """The places of the leaves of a tree in its blocks.

    Attributes:
        structure: the structure of the tree.
        leaves: the shapes and dtypes of the leaves.
        apart: for each leaf, whether it is a block of its own.
        dtype: the dtype of the flat vector.
    """

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    apart: tuple[bool, ...]
    dtype: Any

    @property
    def pooled(self) -> bool:
        """Whether the first block is the flat vector."""
        return not all(self.apart)

    def blocks(self, tree: PyTree) -> Blocks:
        """The blocks of a tree."""
        leaves = jax.tree.leaves(tree)
        flat = [
            leaf.ravel().astype(self.dtype)
            for leaf, alone in zip(leaves, self.apart, strict=True)
            if not alone
        ]
        large = itertools.compress(leaves, self.apart)
        if not flat:
            return tuple(large)
        return flat[0] if len(flat) == 1 else jnp.concatenate(flat), *large

    def some_blocks(self, leaves: dict[int, jax.Array]) -> tuple[jax.Array | None, ...]:
        """The blocks of some leaves, by place, with 0 for the others.

        A block without any of these leaves is None.
        """
        dtype = next(iter(leaves.values())).dtype
        flat: list[jax.Array] = []
        large: list[jax.Array | None] = []
        some = False
        for place, (like, alone) in enumerate(
            zip(self.leaves, self.apart, strict=True)
        ):
            leaf = leaves.get(place)
            if alone:
                large.append(leaf)
                continue
            some = some or leaf is not None
            size = math.prod(like.shape)
            flat.append(
                jnp.zeros(size, dtype) if leaf is None else leaf.ravel().astype(dtype)
            )
        if not flat:
            return tuple(large)
        return jnp.concatenate(flat) if some else None, *large

    def tree(self, blocks: Blocks) -> PyTree:
        """The tree of these blocks."""
        sizes = [
            math.prod(leaf.shape)
            for leaf, alone in zip(self.leaves, self.apart, strict=True)
            if not alone
        ]
        flat = iter(jax.lax.split(blocks[0], sizes) if sizes else ())
        large = iter(blocks[bool(sizes) :])
        return self.structure.unflatten(
            next(large) if alone else next(flat).reshape(leaf.shape).astype(leaf.dtype)
            for leaf, alone in zip(self.leaves, self.apart, strict=True)
        )

    def zeros(self, tree: PyTree) -> Blocks:
        """Blocks of zeros; those of large leaves are sharded as in the tree."""
        large = itertools.compress(jax.tree.leaves(tree), self.apart)
        zeros = tuple(
            laid_out_as(leaf, jnp.zeros(leaf.shape, leaf.dtype)) for leaf in large
        )
        if not self.pooled:
            return zeros
        size = sum(
            math.prod(leaf.shape)
            for leaf, alone in zip(self.leaves, self.apart, strict=True)
            if not alone
        )
        return jnp.zeros(size, self.dtype), *zeros


def layout_of(tree: PyTree) -> Layout:
    """The layout of a tree of arrays."""
    leaves, structure = jax.tree.flatten(tree)
    large = is_large(tree)
    return Layout(
        structure,
        tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves),
        tuple(large and leaf.size > LEAST_APART for leaf in leaves),
        compute_dtype(tree),
    )
