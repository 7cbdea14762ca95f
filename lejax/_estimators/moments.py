"""The average of a loss over Gaussian draws: streaming central moments.

Heat regularisation has no finite value where the loss has none, so draws whose loss is
not finite are left out and counted; the average is conditional on the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._info import Info, make_info, unknown
from lejax._internal.mesh_axes import gathered


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
        dtype = self.mean.dtype
        size = jnp.maximum(self.size, 1).astype(dtype)
        units = size * size / jnp.maximum(self.size_square, 1).astype(dtype)
        several = units > 1
        # The factor P/(P - 1), P units, makes few of them honest.
        factor = units / jnp.where(several, units - 1, 1)
        variance = factor * jnp.maximum(self.deviation_square, 0) / (size * size)
        return jnp.where(several, jnp.sqrt(variance), unknown(dtype))

    def failed_fraction(self) -> jax.Array:
        """The share of draws that were left out."""
        dtype = self.mean.dtype
        return self.failed.astype(dtype) / (self.size + self.failed).astype(dtype)


def empty_moments(dtype: Any) -> LossMoments:
    """The moments of no losses."""
    zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    return LossMoments(none, zero, none, zero, zero, none)


def loss_moments(values: jax.Array, kept: jax.Array, valid: jax.Array) -> LossMoments:
    """The moments of the losses (k, p, g) of p units, of which those `kept` count."""
    dtype = values.dtype
    n = kept.sum((0, 2), dtype=jnp.int32)
    size = n.sum(dtype=jnp.int32)
    mean = jnp.where(kept, values / jnp.maximum(size, 1).astype(dtype), 0).sum()
    deviation = jnp.where(kept, values - mean, 0).sum((0, 2))
    return LossMoments(
        size=size,
        mean=mean,
        size_square=n @ n,
        deviation=n.astype(dtype) @ deviation,
        deviation_square=deviation @ deviation,
        failed=(~kept & valid).sum(dtype=jnp.int32),
    )


def about(mean: jax.Array, moments: LossMoments) -> LossMoments:
    """The same moments, taken about another mean: the sums of two then add."""
    shift = moments.mean - mean
    deviation = moments.deviation + shift * moments.size_square.astype(mean.dtype)
    return moments._replace(
        deviation=deviation,
        deviation_square=moments.deviation_square
        + shift * (moments.deviation + deviation),
    )


def merge_moments(a: LossMoments, b: LossMoments) -> LossMoments:
    """The moments of both: associative and commutative to rounding."""
    dtype = a.mean.dtype
    size = jnp.maximum(a.size + b.size, 1).astype(dtype)
    mean = a.mean * (a.size.astype(dtype) / size) + b.mean * (
        b.size.astype(dtype) / size
    )
    return jax.tree.map(jnp.add, about(mean, a), about(mean, b))._replace(mean=mean)


def of_members(scalars: Any, axis_name: str) -> Any:
    """The scalars of all members of a named axis, on a leading axis of members.

    In one exchange, whole numbers as the others: exact up to 2^24 in single precision.
    """
    leaves, structure = jax.tree.flatten(scalars)
    (dtype,) = {x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)}
    parts = gathered(jnp.stack([leaf.astype(dtype) for leaf in leaves]), axis_name)
    return structure.unflatten(
        part.astype(leaf.dtype) for part, leaf in zip(parts.T, leaves, strict=True)
    )


def pooled(moments: LossMoments) -> LossMoments:
    """The moments of all members, given as `of_members` returns them."""
    dtype = moments.mean.dtype
    share = moments.size.astype(dtype) / jnp.maximum(moments.size.sum(), 1).astype(
        dtype
    )
    mean = share @ moments.mean
    total = jax.tree.map(lambda leaf: leaf.sum(dtype=leaf.dtype), about(mean, moments))
    return total._replace(mean=mean)


def noise_of_sum(
    square: jax.Array, total_square: jax.Array, shares: jax.Array
) -> jax.Array:
    """E|m - E m|² of a sum m of independent parts, from what each was.

    `square` is Σ|mᵤ|² over the parts, `total_square` |m|², and `shares` Σpᵤ² of their
    shares pᵤ of all samples, so that E mᵤ = pᵤ E m. Unknown for one part.
    """
    several = shares < 1
    rest = jnp.where(several, 1 - shares, 1)
    found = jnp.maximum(square - shares * total_square, 0) / rest
    return jnp.where(several, found, unknown(square.dtype))


def mean_info(moments: LossMoments, num_evaluations: int) -> Info:
    """The info of an average: over the draws that were finite, so conditional."""
    nothing, dtype = moments.size == 0, moments.mean.dtype
    return make_info(
        dtype,
        num_evaluations,
        objective=jnp.where(nothing, unknown(dtype), moments.mean),
        standard_error=moments.standard_error(),
        effective_sample_size=moments.size,
        nonfinite_fraction=moments.failed_fraction(),
    )
