"""The losses of an update: J numbers, from one pass over its draws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lejax._estimators.draws import Chunk, Draws, Evaluated, evaluate
from lejax._estimators.units import joined
from lejax._internal.blocks import Blocks
from lejax._internal.mesh_axes import mean_over
from lejax._internal.types import PyTree
from lejax._spaces.control_variate import Sums, add_control_variate


def losses_of(draws: Draws) -> Evaluated:
    """f at every displacement: by part, (units, k, g)."""
    space = draws.space
    if space.outside is not None:
        return _outside(draws)

    def fn(u: Blocks, sign: Any) -> jax.Array:
        return space.value_fn(u, sign=sign)

    return evaluate(draws, fn, by_unit, keep=True)


def by_unit(total: PyTree, chunk: Chunk) -> tuple[PyTree, PyTree]:
    """The outputs by unit, (p, k, g, ...); the total stays as it is."""
    return total, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), chunk.outputs)


def losses_with_credit(draws: Draws) -> Evaluated:
    """f, its sum over examples relative to x, and the sums of the control variate."""
    space, control = draws.space, draws.space.control_variate
    assert control is not None
    at_origin = mean_over(control.baselines.sum(), control.data_axis_name)

    def absorb(total: Sums, chunk: Chunk) -> tuple[Sums, PyTree]:
        losses, examples = chunk.outputs
        # Without terms outside the sum: a constant would hide the losses from the fit.
        summed = mean_over(examples.losses.sum(-1), control.data_axis_name)
        kept = jnp.moveaxis(losses, 0, 1), jnp.moveaxis(summed - at_origin, 0, 1)
        return (
            add_control_variate(
                control,
                total,
                chunk.u,
                jax.vmap(jax.vmap(space.tree))(chunk.u),
                chunk.signs,
                chunk.real,
                examples,
            ),
            kept,
        )

    return evaluate(draws, control.examine, absorb, control.no_sums(), keep=True)


def _outside(draws: Draws) -> Evaluated:
    """The losses from outside, in the order of units, signs and copies."""
    assert draws.space.outside is not None
    displacements: list[Blocks] = []
    for part in draws.units.parts:
        _, u = draws.drawn(part, draws.units.numbers(part))
        both = [
            jnp.stack([block, -block][: part.signs], 1).reshape(-1, *block.shape[2:])
            for block in u
        ]
        displacements.append(tuple(both))
    losses = draws.space.outside.losses_of(joined(displacements)).astype(
        draws.scale.dtype
    )
    return Evaluated(draws.units.own(losses), (), [None] * len(draws.units.parts))
