"""What the sums of local entropy say: displacement and free energy, with errors."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._accumulator import WeightedAccumulator
from lejax._info import is_known, unknown
from lejax._moments import about, noise_of_sum
from lejax._trees import PyTree, inner, is_large, scaled


class WeightedEstimate(NamedTuple):
    """What an accumulator says about q ∝ exp(ℓ) φ.

    Attributes:
        displacement: δ̂ = Σv/S, estimates E_q[X] - x; 0 where nothing has a weight. Of
            centred weights, less Σδ/J, which has mean 0.
        squared_error: V, the estimate of E|δ̂ - δ|²; NaN from one unit, or one group.
        norm_error: the standard error of |δ̂|² - V, the estimate of |δ|²; NaN from one
            group.
        squared_weights: ΣD²/S²: times the variance of the draws, that of δ̂ along a
            direction that the loss does not see.
        log_mean: log((1/J) Σ exp ℓ); ∓inf where nothing, or an infinite weight, counts.
        log_mean_error: its standard error, by independent units.
        effective_sample_size: S²/K.
        failed_fraction: the share of samples whose loss was not finite.
    """

    displacement: PyTree
    squared_error: jax.Array
    norm_error: jax.Array
    squared_weights: jax.Array
    log_mean: jax.Array
    log_mean_error: jax.Array
    effective_sample_size: jax.Array
    failed_fraction: jax.Array


def estimate(
    acc: WeightedAccumulator,
    groups: WeightedAccumulator | None,
    axis_name: str | None = None,
) -> WeightedEstimate:
    """The estimates that the sums allow.

    `acc` is the whole, and `groups` its parts along a leading axis, those that this
    member of the axis made; None where it is not in parts.
    """
    moments, dtype = acc.moments, acc.moments.mean.dtype
    counts = moments.mean > 0
    size = jnp.maximum(moments.size, 1).astype(dtype)
    mean = jnp.where(counts, moments.mean, 1)
    weight = size * mean  # S
    displacement = scaled(
        acc.moment if acc.credited is None else acc.credited, 1 / weight
    )
    if acc.offset is not None:
        centred = optax.tree.sub(displacement, scaled(acc.offset, 1 / size))
        displacement = optax.tree.where(counts, centred, displacement)
    noise = along = unknown(dtype)
    if groups is not None:
        noise, along = _noise_of_groups(
            acc, groups, displacement, weight, size, axis_name
        )
    infinite = jnp.where(acc.max_log_weight > 0, jnp.inf, -jnp.inf).astype(dtype)
    return WeightedEstimate(
        displacement=displacement,
        squared_error=(
            _noise_of_units(acc, weight, size) if acc.credited is None else noise
        ),
        norm_error=jnp.where(is_known(along), 2 * jnp.sqrt(along), along),
        squared_weights=acc.difference_square / (weight * weight),
        log_mean=jnp.where(counts, acc.max_log_weight + jnp.log(mean), infinite),
        log_mean_error=moments.standard_error() / mean,
        effective_sample_size=jnp.where(
            counts, weight**2 / jnp.where(counts, acc.member_square, 1), 0
        ),
        failed_fraction=moments.failed.astype(dtype) / size,
    )


def _noise_of_units(
    acc: WeightedAccumulator, weight: jax.Array, size: jax.Array
) -> jax.Array:
    """V of Σv/S, whose units leave v - tδ̂."""
    moments, dtype = acc.moments, weight.dtype
    plain = scaled(acc.moment, 1 / weight)
    shares = moments.size_square.astype(dtype) / size**2
    square = inner(plain, plain, dtype)
    if is_large(acc.moment):
        # The sums that are wanted alone: by about 1/d too much, but no d numbers more.
        return noise_of_sum(acc.moment_square / weight**2, square, shares)
    # T2 = Σt², about 0 instead of about the mean.
    weight_square = about(jnp.zeros((), dtype), moments).deviation_square
    residuals = (
        acc.moment_square
        - 2 * inner(plain, acc.cross_moment, dtype)
        + square * weight_square
    )
    return noise_of_sum(residuals / weight**2, jnp.zeros((), dtype), shares)


def _noise_of_groups(
    acc: WeightedAccumulator,
    groups: WeightedAccumulator,
    displacement: PyTree,
    weight: jax.Array,
    size: jax.Array,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array]:
    """V, and the variance of <δ̂ - δ, δ̂>.

    By the residuals of the groups, m = n - sδ̂: n is what a group adds to δ̂, and s its
    share of S. Twice the standard error of <δ̂ - δ, δ̂> is the jackknife's of |δ̂|² - V.
    """
    dtype = weight.dtype
    scale = jnp.exp(groups.max_log_weight - acc.max_log_weight) / weight
    each = groups.moments.size.astype(dtype)
    share = scale * groups.moments.mean * each

    def of_leaf(
        moment: jax.Array,
        credit: jax.Array | None,
        offset: jax.Array | None,
        mean: jax.Array,
    ) -> jax.Array:
        """Σn² and Σnδ̂ over a leaf, by group."""
        added = jax.vmap(jnp.multiply)(moment, scale.astype(moment.dtype))
        if credit is not None and acc.factor is not None:
            factor = (acc.factor / weight).astype(moment.dtype)
            added = added + jnp.where(factor != 0, credit * factor, 0)
        if offset is not None:
            added = added - offset / size.astype(moment.dtype)
        axes = tuple(range(1, added.ndim))
        sums = (added * added).sum(axes), (added * mean).sum(axes)
        return jnp.stack(sums).astype(dtype)

    moments = jax.tree.leaves(groups.moment)
    nothing = [None] * len(moments)
    sums = map(
        of_leaf,
        moments,
        groups.credit or nothing,
        nothing if groups.offset is None else jax.tree.leaves(groups.offset),
        jax.tree.leaves(displacement),
    )
    squares, products = sum(sums, jnp.zeros((2, share.size), dtype))
    whole = inner(displacement, displacement, dtype)
    found = jnp.stack(
        [
            (squares - 2 * share * products + share**2 * whole).sum(),
            jnp.square(products - share * whole).sum(),
            jnp.square(each / size).sum(),
        ]
    )
    if axis_name is not None:
        found = jax.lax.psum(found, axis_name)
    residuals, along, shares = found
    zero = jnp.zeros((), dtype)
    return noise_of_sum(residuals, zero, shares), noise_of_sum(along, zero, shares)
