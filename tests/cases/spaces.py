"""Spaces whose displacements are trees, as a reader of a test thinks of them."""

from __future__ import annotations

import jax

from lejax._internal.blocks import layout_of
from lejax._spaces.reduced import reduced_space
from lejax._tracing.loss import traced
from lejax._tracing.per_example import read_per_example
from lejax._tracing.program import program_of


class InTrees:
    """A space, by trees of displacements instead of blocks."""

    def __init__(self, space):
        self.inner = space
        self.zeros = space.tree(space.zeros)
        self.blocks = layout_of(self.zeros).blocks
        self.to_null_space = space.to_null_space
        self.control_variate = space.control_variate

    def noise(self, key, copies):
        drawn = self.inner.noise(key, copies).copies(copies)
        return jax.vmap(self.inner.tree)(drawn)

    def value_fn(self, u, j=0, sign=None):
        return self.inner.value_fn(self.blocks(u), j, sign)

    def lift(self, u):
        return self.inner.lift(self.blocks(u))

    def lower(self, tree):
        return self.inner.tree(self.inner.lower(tree))


def reduced(value_fn, params, batch, inner_batches=False, **options):
    loss = traced(value_fn, params, batch, inner_batches=inner_batches)
    return InTrees(reduced_space(loss, params, **options))


def reading(value_fn, params, batch):
    """The program of a loss, and the loss as a sum over examples."""
    program = program_of(traced(value_fn, params, batch))
    return program, read_per_example(program, len(jax.tree.leaves(params)))
