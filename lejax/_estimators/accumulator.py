"""The streaming log-weighted accumulator of local entropy: an online softmax.

Of log-weights ℓ = -βf and displacements δ from x it keeps sums that are scaled by
exp(-m), m the largest ℓ so far; two of them merge into one. The same merge serves
chunks, devices and hosts. A unit (draws that share their numbers, used with one sign or
with both) has the weights w = exp(ℓ - m) with their sum t = Σw; a draw of displacement
δ has the signed sum D = Σ±w, and the unit the moment v = ΣDδ.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._estimators.draws import Draws
from lejax._estimators.moments import (
    LossMoments,
    empty_moments,
    loss_moments,
    merge_moments,
    of_members,
    pooled,
)
from lejax._estimators.second_moments import no_products, squares
from lejax._internal.trees import all_finite, inner, scaled
from lejax._internal.types import PyTree
from lejax._spaces.space import Products


class WeightedAccumulator(NamedTuple):
    """Sums over units; weights are relative to exp(max_log_weight).

    Attributes:
        max_log_weight: m, the largest ℓ. Never infinite: the lowest finite number where
            nothing has a weight, the highest where a loss was -inf.
        moments: the central moments of the weights of all samples, by unit: nearly
            equal weights then keep the digits of their spread. Their mean is S/J; the
            samples that failed have the weight 0, and are counted beside.
        member_square: K = Σw², over samples.
        difference_square: ΣD², over draws.
        moment_square: Q2 = Σ|v|², over units.
        moment: Σv.
        cross_moment: r = Σtv.
        loss_product: ΣDE, E = Σ±(f - b) the signed sum of the losses; with credit by
            example alone, as all that follow.
        loss_square: ΣE².
        credit: the sum of the control variates.
        loss_sum: ΣE; where weights are to be centred alone.
        offset: Σδ; likewise, and where a covariance is to be learnt; there o = Σ±δ is
            that of a unit, 0 of a pair.
        offset_square: Σ|o|²; where a covariance is to be learnt, as the next two.
        offset_product: Σvo.
        offset_cross_moment: Σto.
        factor: the multiple of `credit` that leaves the least noise; what `with_credit`
            finds, as the next.
        credited: Σv with that multiple.
        products: Σw uuᵀ over samples, as far as a covariance keeps it; where one is to
            be learnt alone, as the next.
        all_products: Σuuᵀ, over samples.
    """

    max_log_weight: jax.Array
    moments: LossMoments
    member_square: jax.Array
    difference_square: jax.Array
    moment_square: jax.Array
    moment: PyTree
    cross_moment: PyTree
    loss_product: jax.Array | None = None
    loss_square: jax.Array | None = None
    credit: PyTree = None
    loss_sum: jax.Array | None = None
    offset: PyTree = None
    offset_square: jax.Array | None = None
    offset_product: jax.Array | None = None
    offset_cross_moment: PyTree = None
    factor: jax.Array | None = None
    credited: PyTree = None
    products: PyTree = None
    all_products: PyTree = None


def log_weights(losses: jax.Array, beta: jax.Array) -> jax.Array:
    """-βf. It may overflow where f does not: only f's own infinities stay infinite."""
    limit = jnp.where(jnp.isfinite(losses), jnp.finfo(losses.dtype).max, jnp.inf)
    return jnp.clip(-beta * losses, -limit, limit)


def empty(
    zeros: PyTree, dtype: Any, products: Products | None = None
) -> WeightedAccumulator:
    """The accumulator of nothing, the neutral element of `merge`."""
    zero = jnp.zeros((), dtype)
    acc = WeightedAccumulator(
        max_log_weight=jnp.asarray(jnp.finfo(dtype).min, dtype),
        moments=empty_moments(dtype),
        member_square=zero,
        difference_square=zero,
        moment_square=zero,
        moment=zeros,
        cross_moment=zeros,
    )
    if products is None:
        return acc
    nothing = no_products(products, zeros)
    return acc._replace(
        products=nothing,
        all_products=nothing,
        offset=zeros,
        offset_square=zero,
        offset_product=zero,
        offset_cross_moment=zeros,
    )


def empty_with_credit(
    nothing: WeightedAccumulator, credit: PyTree, *, centred: bool
) -> WeightedAccumulator:
    """The same with room for sums of credit by example, and to centre the weights."""
    zero = jnp.zeros_like(nothing.max_log_weight)
    return nothing._replace(
        loss_product=zero,
        loss_square=zero,
        credit=credit,
        loss_sum=zero if centred else None,
        offset=nothing.moment if centred else None,
    )


def summarise(draws: Draws, products: Products | None = None) -> WeightedAccumulator:
    """Accumulate one chunk, whose outputs are the log-weights ℓ, (k, p, g)."""
    log_weights, valid = draws.outputs, draws.valid
    dtype = log_weights.dtype
    # ℓ is -inf or NaN where a loss was +inf or NaN: no weight. A loss of -inf has all
    # the weight, which no average can bear: m at the top of the range says so.
    real = jnp.broadcast_to(valid, log_weights.shape)
    counted = jnp.isfinite(log_weights) & real
    clipped = jnp.where(
        real & ~jnp.isnan(log_weights), log_weights, jnp.finfo(dtype).min
    ).clip(jnp.finfo(dtype).min, jnp.finfo(dtype).max)
    top = clipped.max()
    w = jnp.where(counted, jnp.exp(clipped - top), 0)
    t = w.sum((0, 2))
    d = draws.signed(w)
    ones = real.astype(dtype)
    of_units = draws.unit_moments(w)
    acc = WeightedAccumulator(
        max_log_weight=top,
        moments=loss_moments(w, real, valid)._replace(
            failed=(~counted & real).sum(dtype=jnp.int32)
        ),
        member_square=(w * w).sum(),
        difference_square=(d * d).sum(),
        moment_square=inner(of_units, of_units, dtype),
        moment=_over_units(of_units, jnp.ones_like(t)),
        cross_moment=_over_units(of_units, t),
    )
    if products is None:
        return acc
    offsets = draws.unit_moments(ones)
    return acc._replace(
        products=squares(products, draws, w),
        all_products=squares(products, draws, ones),
        offset=_over_units(offsets, jnp.ones_like(t)),
        offset_square=inner(offsets, offsets, dtype),
        offset_product=inner(of_units, offsets, dtype),
        offset_cross_moment=_over_units(offsets, t),
    )


def _over_units(leaves: PyTree, coefficients: jax.Array) -> PyTree:
    """Σcv over the units, for leaves (p, ...) and coefficients (p,)."""
    return jax.tree.map(
        lambda leaf: jnp.tensordot(coefficients.astype(leaf.dtype), leaf, 1), leaves
    )


def with_losses(
    draws: Draws, values: jax.Array, *, centred: bool
) -> WeightedAccumulator:
    """`summarise`, and what the factor of credit by example needs.

    `values` are f - b, (k, p, g).
    """
    acc = summarise(draws)
    weights = jnp.exp(draws.outputs - acc.max_log_weight)
    counted = jnp.isfinite(values) & jnp.isfinite(draws.outputs) & draws.valid
    d = draws.signed(jnp.where(counted, weights, 0))
    e = draws.signed(jnp.where(counted, values, 0))
    acc = acc._replace(loss_product=(d * e).sum(), loss_square=(e * e).sum())
    if not centred:
        return acc
    ones = jnp.broadcast_to(draws.valid, values.shape).astype(values.dtype)
    return acc._replace(loss_sum=e.sum(), offset=draws.moment(ones))


def merge(a: WeightedAccumulator, b: WeightedAccumulator) -> WeightedAccumulator:
    """The accumulator of both: associative and commutative to rounding."""
    top = jnp.maximum(a.max_log_weight, b.max_log_weight)
    a, b = _rescaled(a, top), _rescaled(b, top)
    return jax.tree.map(jnp.add, a, b)._replace(
        max_log_weight=top, moments=merge_moments(a.moments, b.moments)
    )


def merge_groups(groups: WeightedAccumulator) -> WeightedAccumulator:
    """`merge` of those along a leading axis."""
    top = groups.max_log_weight.max()
    each = jax.vmap(_rescaled, (0, None))(groups, top)
    return jax.tree.map(lambda leaf: leaf.sum(0), each)._replace(
        max_log_weight=top, moments=pooled(each.moments)
    )


def agreed(acc: WeightedAccumulator, axis_name: str) -> WeightedAccumulator:
    """The first of two exchanges of the members of a named axis: all scalars of all.

    The sums stay those of a member, in the scale of all, with the factor of credit of
    all; moments and what the factor is made of are final.
    """
    finite = None if acc.credit is None else all_finite(acc.credit)
    tops, moments, product, square, loss_sum, finite = of_members(
        (
            acc.max_log_weight,
            acc.moments,
            acc.loss_product,
            acc.loss_square,
            acc.loss_sum,
            finite,
        ),
        axis_name,
    )
    top = tops.max()
    scales = jnp.exp(tops - top)
    total = _rescaled(acc, top)._replace(
        max_log_weight=top,
        moments=pooled(_scaled_moments(moments, scales)),
        loss_product=None if product is None else (product * scales).sum(),
        loss_square=None if square is None else square.sum(),
        loss_sum=None if loss_sum is None else loss_sum.sum(),
    )
    return total if finite is None else with_credit(total, finite.all())


def summed(
    acc: WeightedAccumulator, beside: PyTree, axis_name: str
) -> tuple[WeightedAccumulator, PyTree]:
    """The second exchange: the sum of what `agreed` left apart, and of `beside`."""
    kept = {
        "max_log_weight",
        "moments",
        "loss_product",
        "loss_square",
        "loss_sum",
        "factor",
    }
    apart = acc._replace(**dict.fromkeys(kept))
    sums, beside = jax.lax.psum((apart, beside), axis_name)
    return sums._replace(**{name: getattr(acc, name) for name in kept}), beside


def with_credit(acc: WeightedAccumulator, finite: jax.Array) -> WeightedAccumulator:
    """The moment with the sums of the control variates in it, where these are finite.

    Their factor is κβS/J, fitted: that with which the draws' coefficients D/S + κβE/J
    have the least square; those of centred weights are D/S - 1/J.
    """
    assert acc.loss_product is not None
    assert acc.loss_square is not None
    product = acc.loss_product
    if acc.loss_sum is not None:
        product = product - acc.moments.mean * acc.loss_sum
    factor = -product / jnp.where(acc.loss_square > 0, acc.loss_square, 1)
    finite = finite & jnp.isfinite(factor)
    factor = jnp.where(finite, factor, 0)
    leaves, structure = jax.tree.flatten(acc.moment)
    credited = [
        leaf
        if part is None
        else leaf + jnp.where(finite, part * factor.astype(leaf.dtype), 0)
        for leaf, part in zip(leaves, acc.credit, strict=True)
    ]
    return acc._replace(
        factor=factor, credited=structure.unflatten(credited), credit=None
    )


def _rescaled(acc: WeightedAccumulator, top: jax.Array) -> WeightedAccumulator:
    once = jnp.exp(acc.max_log_weight - top)
    twice = once * once
    return acc._replace(
        moments=_scaled_moments(acc.moments, once),
        member_square=acc.member_square * twice,
        difference_square=acc.difference_square * twice,
        moment_square=acc.moment_square * twice,
        moment=scaled(acc.moment, once),
        products=scaled(acc.products, once),
        cross_moment=scaled(acc.cross_moment, twice),
        offset_product=scaled(acc.offset_product, once),
        offset_cross_moment=scaled(acc.offset_cross_moment, once),
        loss_product=scaled(acc.loss_product, once),
    )


def _scaled_moments(moments: LossMoments, factor: jax.Array) -> LossMoments:
    return moments._replace(
        mean=moments.mean * factor,
        deviation=moments.deviation * factor,
        deviation_square=moments.deviation_square * factor**2,
    )
