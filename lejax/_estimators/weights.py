"""What the sums of local entropy say: displacement and free energy, with errors."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.accumulator import WeightedAccumulator
from lejax._estimators.moments import LossMoments, about, noise_of_sum
from lejax._info import is_known, unknown
from lejax._internal.trees import inner, is_large, scaled
from lejax._internal.types import PyTree


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
        excess: the estimate of E_q uuᵀ - E_φ uuᵀ, by centred weights w̃ - 1/J, as far as
            a covariance keeps it; 0 where nothing has a weight.
    """

    displacement: PyTree
    squared_error: jax.Array
    norm_error: jax.Array
    squared_weights: jax.Array
    log_mean: jax.Array
    log_mean_error: jax.Array
    effective_sample_size: jax.Array
    failed_fraction: jax.Array
    excess: PyTree


def estimate(
    acc: WeightedAccumulator, of_groups: tuple[jax.Array, jax.Array] | None
) -> WeightedEstimate:
    """The estimates that the sums allow; `of_groups` is from `noise_of_groups`."""
    moments, dtype = acc.moments, acc.moments.mean.dtype
    counts = moments.mean > 0
    size, weight = _size_and_weight(moments)
    mean = weight / size
    displacement = _displacement(acc, acc.credited)
    noise, along = of_groups or (unknown(dtype), unknown(dtype))
    # What units leave is that of sums without credit.
    if acc.credited is None:
        noise = _noise_of_units(acc)
    infinite = jnp.where(acc.max_log_weight > 0, jnp.inf, -jnp.inf).astype(dtype)
    return WeightedEstimate(
        displacement=displacement,
        squared_error=noise,
        # The jackknife's, of first order 2<δ̂ - δ, δ̂>.
        norm_error=jnp.where(
            is_known(along),
            2 * jnp.sqrt(along * inner(displacement, displacement, dtype)),
            along,
        ),
        squared_weights=acc.difference_square / (weight * weight),
        log_mean=jnp.where(counts, acc.max_log_weight + jnp.log(mean), infinite),
        log_mean_error=moments.standard_error() / mean,
        effective_sample_size=jnp.where(
            counts, weight**2 / jnp.where(counts, acc.member_square, 1), 0
        ),
        failed_fraction=moments.failed.astype(dtype) / size,
        excess=optax.tree.where(
            counts,
            optax.tree.sub(
                scaled(acc.products, 1 / weight), scaled(acc.all_products, 1 / size)
            ),
            optax.tree.zeros_like(acc.products),
        ),
    )


def _size_and_weight(moments: LossMoments) -> tuple[jax.Array, jax.Array]:
    """J and S; no zeros, where nothing counts."""
    size = jnp.maximum(moments.size, 1).astype(moments.mean.dtype)
    return size, size * jnp.where(moments.mean > 0, moments.mean, 1)


def _displacement(acc: WeightedAccumulator, credited: PyTree) -> PyTree:
    """Σv/S, or of sums with credit; of centred weights, less Σδ/J."""
    size, weight = _size_and_weight(acc.moments)
    found = scaled(acc.moment if credited is None else credited, 1 / weight)
    if acc.offset is None:
        return found
    centred = optax.tree.sub(found, scaled(acc.offset, 1 / size))
    return optax.tree.where(acc.moments.mean > 0, centred, found)


def _noise_of_units(acc: WeightedAccumulator) -> jax.Array:
    """V of n = Σv/S, or Σ(v/S - o/J), whose units leave v/S - o/J - tn/S."""
    moments, dtype = acc.moments, acc.moments.mean.dtype
    size, weight = _size_and_weight(moments)
    plain = _displacement(acc, None)
    shares = moments.size_square.astype(dtype) / size**2
    square = inner(plain, plain, dtype)
    squares = acc.moment_square / weight**2
    across = scaled(acc.cross_moment, 1 / weight**2)
    if acc.offset_square is not None:
        assert acc.offset_product is not None
        each = jnp.where(moments.mean > 0, 1 / size, 0)
        squares += acc.offset_square * each**2 - 2 * acc.offset_product * each / weight
        offsets = scaled(acc.offset_cross_moment, each / weight)
        across = optax.tree.sub(across, offsets)
    if is_large(acc.moment):
        # The sums that are wanted alone: by about 1/d too much, but no d numbers more.
        return noise_of_sum(squares, square, shares)
    # T2 = Σt², about 0 instead of about the mean.
    weight_square = about(jnp.zeros((), dtype), moments).deviation_square
    residuals = (
        squares - 2 * inner(plain, across, dtype) + square * (weight_square / weight**2)
    )
    return noise_of_sum(residuals, jnp.zeros((), dtype), shares)


def noise_of_groups(
    acc: WeightedAccumulator, groups: WeightedAccumulator
) -> tuple[jax.Array, jax.Array]:
    """V, and the variance of δ̂ along its own direction; of a member, parts of a sum.

    `groups` are what `acc` was merged of, along a leading axis. By their residuals
    m = n - sd: n is what a group adds to δ̂, d = Σn, and s its share of S. The direction
    is that of d: that of δ̂, but where members of an axis would need one exchange more
    to know it. A member's d has more noise, and so lies rather where noise is large.
    """
    dtype = acc.moments.mean.dtype
    size, weight = _size_and_weight(acc.moments)
    scale = jnp.exp(groups.max_log_weight - acc.max_log_weight) / weight
    each = groups.moments.size.astype(dtype)
    share = scale * groups.moments.mean * each

    def of_leaf(
        moment: jax.Array, credit: jax.Array | None, offset: jax.Array | None
    ) -> jax.Array:
        """|n|² and <n, d> over a leaf, by group."""
        added = jax.vmap(jnp.multiply)(moment, scale.astype(moment.dtype))
        if credit is not None and acc.factor is not None:
            factor = (acc.factor / weight).astype(moment.dtype)
            added = added + jnp.where(factor != 0, credit * factor, 0)
        if offset is not None:
            added = added - offset / size.astype(moment.dtype)
        axes = tuple(range(1, added.ndim))
        products = (added * added).sum(axes), (added * added.sum(0)).sum(axes)
        return jnp.stack(products).astype(dtype)

    leaves = jax.tree.leaves(groups.moment)
    nothing = [None] * len(leaves)
    offsets = nothing if groups.offset is None else jax.tree.leaves(groups.offset)
    products = map(of_leaf, leaves, groups.credit or nothing, offsets)
    squares, along = sum(products, jnp.zeros((2, share.size), dtype))
    length, mine, zero = along.sum(), share.sum(), jnp.zeros((), dtype)
    share = share / jnp.where(mine > 0, mine, 1)
    shares = jnp.square(each / jnp.maximum(each.sum(), 1)).sum()
    residuals = (squares - 2 * share * along + share**2 * length).sum()
    along = jnp.square(along - share * length).sum() / jnp.where(length > 0, length, 1)
    return noise_of_sum(residuals, zero, shares), noise_of_sum(along, zero, shares)
