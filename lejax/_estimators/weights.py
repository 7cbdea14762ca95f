"""Importance weights and averages of J losses, and their standard errors.

Plain functions of flat arrays of losses. A unit is all evaluations that share a draw.
Units are independent, so errors are computed over units.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lejax._estimators.units import Units
from lejax._info import (
    TRUSTED_PARETO_K,
    TRUSTED_SAMPLE_SIZE,
    Info,
    is_known,
    make_info,
    unknown,
)


class Weights(NamedTuple):
    """Importance weights, and the estimates from them.

    Attributes:
        shares: w/Σw, (N,); all 0 if nothing counts.
        counts: which of the losses have a weight.
        free_energy: -(1/β) log E exp(-βf); +inf if all losses failed, and -inf if one
            was -inf.
        standard_error: of `free_energy`, to first order.
        effective_sample_size: (Σw)²/Σw².
        failed_fraction: the share of losses that were not finite.
    """

    shares: jax.Array
    counts: jax.Array
    free_energy: jax.Array
    standard_error: jax.Array
    effective_sample_size: jax.Array
    failed_fraction: jax.Array

    def centred(self, units: Units) -> jax.Array:
        """Centred weights, w/Σw - 1/J: the same mean, as E[X - x] = 0."""
        some = self.effective_sample_size > 0
        each = jnp.where(some, 1 / units.num_samples, 0).astype(self.shares.dtype)
        real = units.real
        return self.shares - (each if real is None else jnp.where(real, each, 0))


def importance_weights(losses: jax.Array, units: Units, beta: jax.Array) -> Weights:
    """Weights proportional to exp(-βf); 0 if f is NaN or +inf.

    A loss of -inf would have infinite weight: nothing counts then.
    """
    dtype, size = losses.dtype, units.num_samples
    limits, real = jnp.finfo(dtype), units.real
    losses = units.filled(losses)
    finite, infinite = jnp.isfinite(losses), jnp.any(losses == -jnp.inf)
    counts = finite & ~infinite
    least = jnp.where(finite, losses, limits.max).min()
    # Differences from the least loss keep the digits of nearly equal losses, and so do
    # weights minus 1. A difference may overflow even if the losses do not.
    log_weights = -beta * jnp.clip(losses - least, 0, limits.max)
    log_weights = jnp.where(counts, log_weights, -jnp.inf)
    w, above = jnp.exp(log_weights), jnp.expm1(log_weights)
    total = w.sum()
    some = total > 0
    mean = total / size
    filled = losses.size - size
    below = (above.sum() + filled) / size
    log_mean = jnp.where(below > -0.5, jnp.log1p(below), jnp.log(mean))
    shares = w / jnp.where(some, total, 1)
    above = above if real is None else jnp.where(real, above, 0)
    scale = 1 / (jnp.where(some, total, 1) * beta)
    return Weights(
        shares,
        counts,
        free_energy=jnp.where(
            some, least - log_mean / beta, jnp.where(infinite, -jnp.inf, jnp.inf)
        ),
        standard_error=error_of_sum(above, below, units, scale),
        effective_sample_size=jnp.where(
            some, 1 / jnp.where(some, jnp.square(shares).sum(), 1), 0
        ),
        failed_fraction=((~finite).sum() - filled).astype(dtype) / size,
    )


def told_error(weights: Weights, shape: jax.Array) -> jax.Array:
    """The standard error of F to report, larger for a large k̂; unknown if untrusted.

    The factor was fitted with 50 to 4000 samples, to weights that are lognormal or
    bounded, of quadratics in 2 and 20 dimensions, of two wells, and of a curved
    density.
    """
    effective = weights.effective_sample_size
    k = jnp.where(is_known(shape), shape, 0)  # unknown for 20 samples or fewer
    factor = 1 + 5 / jnp.maximum(effective, 1) + 1.5 * jnp.maximum(k - 0.2, 0)
    trusted = (effective >= TRUSTED_SAMPLE_SIZE) & (k < TRUSTED_PARETO_K)
    error = weights.standard_error
    return jnp.where(trusted, error * factor, unknown(error.dtype))


def error_of_sum(
    values: jax.Array, mean: jax.Array, units: Units, scale: jax.Array
) -> jax.Array:
    """The standard error of a sum times `scale`, by units; unknown for one unit."""
    rest = 1 - units.unit_shares
    if not rest > 0:
        return unknown(values.dtype)
    apart = units.by_unit(values) - mean * jnp.asarray(units.sizes, values.dtype)
    # For P equal units, 1/rest is P/(P - 1), the correction for few units.
    return jnp.sqrt(jnp.square(apart).sum() / rest) * scale


def noise_of_sum(square: jax.Array, total_square: Any, shares: Any) -> jax.Array:
    """E|m - E m|² of a sum m of independent parts mᵤ; unknown for one part.

    `square` is Σ|mᵤ|² over the parts, and `total_square` is |m|². `shares` is Σpᵤ² for
    the shares pᵤ of the parts in all samples, so that E mᵤ = pᵤ E m.
    """
    several = jnp.asarray(shares < 1)
    rest = jnp.where(several, 1 - shares, 1)
    found = jnp.maximum(square - shares * total_square, 0) / rest
    return jnp.where(several, found, unknown(square.dtype))


class Average(NamedTuple):
    """The average of the finite losses, conditional on being finite.

    Attributes:
        objective: their mean; NaN if there are none.
        centred: f - mean, (N,); 0 for a loss that does not count.
        counts: which losses count.
        size: how many of them.
        shares: Σp² over units, for their shares p of the losses that count.
        standard_error: of the mean, by units; NaN for one unit.
        failed_fraction: the share of losses left out.
    """

    objective: jax.Array
    centred: jax.Array
    counts: jax.Array
    size: jax.Array
    shares: jax.Array
    standard_error: jax.Array
    failed_fraction: jax.Array

    def info(self, num_evaluations: int, **known: Any) -> Info:
        """The info of a sampler for heat."""
        return make_info(
            self.centred.dtype,
            num_evaluations,
            objective=self.objective,
            standard_error=self.standard_error,
            effective_sample_size=self.size,
            nonfinite_fraction=self.failed_fraction,
            **known,
        )


def average(
    losses: jax.Array, units: Units, finite: jax.Array | None = None
) -> Average:
    """The average of the losses that are finite, and flagged in `finite` if given."""
    dtype = losses.dtype
    counts = jnp.isfinite(units.filled(losses))
    if finite is not None:
        counts &= finite
    each = units.by_unit(counts.astype(dtype))
    size = each.sum()
    some = jnp.maximum(size, 1)
    # Centred first, so that a large constant in the loss costs no digits.
    mean = jnp.where(counts, losses / some, 0).sum()
    centred = jnp.where(counts, losses - mean, 0)
    shares = jnp.where(size > 0, jnp.square(each / some).sum(), 1)
    square = noise_of_sum(jnp.square(units.by_unit(centred) / some).sum(), 0, shares)
    return Average(
        jnp.where(size > 0, mean, unknown(dtype)),
        centred,
        counts,
        size,
        shares,
        jnp.where(shares < 1, jnp.sqrt(square), square),
        (units.num_samples - size) / units.num_samples,
    )


def pareto_shape(shares: jax.Array, units: Units) -> jax.Array:
    """k̂ of a generalised Pareto distribution fitted to the largest weights.

    It is the estimate of Zhang and Stephens, with the prior of Vehtari et al., from the
    largest min(J/5, 3√J) weights: 0 if these are equal, NaN for fewer than five.
    """
    size, dtype = units.num_samples, shares.dtype
    tail = math.ceil(min(size / 5, 3 * math.sqrt(size)))
    if tail < 5:
        return unknown(dtype)
    largest = jax.lax.top_k(shares, tail + 1)[0]
    above = largest[:tail] - largest[tail]
    spread = above[0] > 0
    above = above / jnp.where(spread, above[0], 1)
    count = 30 + math.isqrt(tail)
    grid = 1 - np.sqrt(count / (np.arange(count) + 0.5))
    # Error counts give many equal losses, so the quartile itself may be 0.
    quartile = jnp.maximum(
        above[tail - int(tail / 4 + 0.5)], jnp.where(above > 0, above, 1).min()
    )
    b = jnp.asarray(grid / 3, dtype) / quartile + 1
    k = jnp.log1p(-b[:, None] * above).mean(1)
    posterior = jax.nn.softmax(tail * (jnp.log(-b / k) - k))
    k = jnp.log1p(-(posterior @ b) * above).mean()
    return jnp.where(spread, (tail * k + 5) / (tail + 10), 0)


def credit_factor(
    weights: Weights, losses: jax.Array, units: Units, *, centred: bool
) -> jax.Array:
    """κβ/J, the factor of the control variate's sum, fitted for the least noise.

    It minimises the sum of squares of the coefficients of the draws, D + κβE/J. Here D
    is the signed sum over a draw of w/Σw, or of the centred weights, and E is that of
    the losses.
    """
    losses = jnp.where(jnp.isfinite(losses) & weights.counts, losses, 0)
    d = units.signed(weights.centred(units) if centred else weights.shares)
    e = units.signed(losses)
    square = jnp.square(e).sum()
    factor = -(d * e).sum() / jnp.where(square > 0, square, 1)
    return jnp.where(jnp.isfinite(factor), factor, 0)
