"""The average of a loss over Gaussian draws: streaming central moments.

Heat regularisation has no finite value where the loss has none, so draws whose loss is
not finite are left out and counted; the average is conditional on the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._info import Info, make_info


class LossMoments(NamedTuple):
    """The average of the finite losses, and what its standard error needs.

    A unit (an antithetic pair, or a single draw) has n finite losses of sum s. The
    moments are central, so that a large constant in the loss costs no digits.

    Attributes:
        size: Σn, the number of finite losses.
        mean: μ = Σs / Σn.
        size_square: Σn².
        deviation: Σn(s - nμ).
        deviation_square: Σ(s - nμ)².
        failed: the number of draws left out.
    """

    size: jax.Array
    mean: jax.Array
    size_square: jax.Array
    deviation: jax.Array
    deviation_square: jax.Array
    failed: jax.Array

    def standard_error(self) -> jax.Array:
        """The standard error of the mean, by independent units; NaN for one unit."""
        units = self.size**2 / self.size_square
        variance = self.deviation_square / self.size**2 * units / (units - 1)
        return jnp.sqrt(jnp.maximum(variance, 0))

    def failed_fraction(self) -> jax.Array:
        """The share of draws that were left out."""
        return self.failed / (self.size + self.failed)


def empty_moments(dtype: Any) -> LossMoments:
    """The moments of no losses."""
    return LossMoments(*jnp.zeros((6,), dtype))


def loss_moments(values: jax.Array, kept: jax.Array, valid: jax.Array) -> LossMoments:
    """The moments of the losses (k, p) of p units, of which `kept` (k, p) count."""
    n = kept.sum(0).astype(values.dtype)
    size = n.sum()
    mean = jnp.where(kept, values / jnp.maximum(size, 1), 0).sum()
    deviation = jnp.where(kept, values - mean, 0).sum(0)
    return LossMoments(
        size=size,
        mean=mean,
        size_square=n @ n,
        deviation=n @ deviation,
        deviation_square=deviation @ deviation,
        failed=(~kept & valid).sum().astype(values.dtype),
    )


def merge_moments(a: LossMoments, b: LossMoments) -> LossMoments:
    """The moments of both: associative and commutative to rounding."""
    size = jnp.maximum(a.size + b.size, 1)
    mean = a.mean * (a.size / size) + b.mean * (b.size / size)

    def about(mean: jax.Array, moments: LossMoments) -> LossMoments:
        shift = moments.mean - mean
        deviation = moments.deviation + shift * moments.size_square
        return moments._replace(
            deviation=deviation,
            deviation_square=moments.deviation_square
            + shift * (moments.deviation + deviation),
        )

    return jax.tree.map(jnp.add, about(mean, a), about(mean, b))._replace(mean=mean)


def mean_info(moments: LossMoments, num_evaluations: int) -> Info:
    """The info of an average: over the draws that were finite, so conditional."""
    nothing = moments.size == 0
    return make_info(
        moments.mean.dtype,
        num_evaluations,
        objective=jnp.where(nothing, jnp.nan, moments.mean),
        standard_error=moments.standard_error(),
        effective_sample_size=moments.size,
        nonfinite_fraction=moments.failed_fraction(),
    )
