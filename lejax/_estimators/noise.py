"""E|δ̂ - E δ̂|² of an estimate, from the contributions of independent parts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lejax._estimators.draws import Combined
from lejax._estimators.units import Units
from lejax._estimators.weights import noise_of_sum
from lejax._info import unknown
from lejax._internal.blocks import Blocks
from lejax._internal.trees import inner


class Noise(NamedTuple):
    """The noise of an estimate.

    Attributes:
        square: V, the estimate of E|δ̂ - δ|²; NaN with one unit, or one group.
        norm_error: the standard error of |δ̂|² - V, which estimates |δ|²; likewise.
    """

    square: jax.Array
    norm_error: jax.Array


def noise_of_units(
    combined: Combined, total: Blocks, shares: jax.Array, units: Units
) -> jax.Array:
    """V, from the residuals vᵤ - sᵤδ̂ of the units, for shares s (N,) of the weight.

    Large blocks leave out the cross term, to save a vector of d numbers. V is then too
    large, by a factor of about 1 + 1/d.
    """
    dtype = shares.dtype
    square = inner(total, total, dtype)
    if combined.cross is None:
        return noise_of_sum(combined.square, square, units.unit_shares)
    left = combined.square - 2 * inner(total, combined.cross, dtype)
    left += square * jnp.square(units.by_unit(shares)).sum()
    return noise_of_sum(left, 0, units.unit_shares)


def noise_of_groups(
    groups: Blocks, total: Blocks, shares: jax.Array, units: Units
) -> Noise:
    """V, and the error of |δ̂|² - V, from the residuals n - sδ̂ of the groups n.

    The groups are those of this member; the total is the sum over all members.
    """
    dtype = shares.dtype
    if not units.group_shares < 1:
        return Noise(unknown(dtype), unknown(dtype))
    share = units.by_group(shares)
    squares = along = jnp.zeros(share.shape, dtype)
    for block, whole in zip(groups, total, strict=True):
        axes = tuple(range(1, block.ndim))
        squares += jnp.square(block).sum(axes).astype(dtype)
        along += (block * whole).sum(axes).astype(dtype)
    length = inner(total, total, dtype)
    left = (squares - 2 * share * along + share**2 * length).sum()
    # The jackknife: the error of |δ̂|² is 2<δ̂ - δ, δ̂> to first order.
    along = jnp.square(along - share * length).sum()
    if units.axis_name is not None:
        left, along = jax.lax.psum((left, along), units.axis_name)
    of_square = noise_of_sum(left, 0, units.group_shares)
    error = 2 * jnp.sqrt(noise_of_sum(along, 0, units.group_shares))
    return Noise(of_square, error)
