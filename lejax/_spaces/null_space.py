"""A Langevin chain in the null space, in closed form: there the loss is constant.

A step is y ← r y + N(0, s²) with r = 1 - ε/2τ and s² = Tε. Given its start y_1, the
points and their running mean are Gaussian, and two recursions give their variances.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._internal.trees import scaled
from lejax._internal.types import PyTree
from lejax._spaces.space import Space, null_space_noise


class NullSpacePoint(NamedTuple):
    """The distribution of a point of the chain, ρ y_1 + N(0, v).

    Attributes:
        decay: ρ.
        variance: v.
        covariance: the covariance of the point and the running mean.
    """

    decay: jax.Array
    variance: jax.Array
    covariance: jax.Array


class NullSpaceMean(NamedTuple):
    """The distribution of the running mean of the points, σ y_1 + N(0, v).

    Attributes:
        decay: σ.
        variance: v.
    """

    decay: jax.Array
    variance: jax.Array


def point(decay: float, dtype: Any) -> NullSpacePoint:
    """The point y_1; with `decay` 0, the point 0."""
    zero = jnp.zeros((), dtype)
    return NullSpacePoint(jnp.asarray(decay, dtype), zero, zero)


def no_mean(dtype: Any) -> NullSpaceMean:
    """The running mean before its first point."""
    return NullSpaceMean(jnp.zeros((), dtype), jnp.zeros((), dtype))


def moved(
    point: NullSpacePoint, rate: jax.Array, variance: jax.Array
) -> NullSpacePoint:
    """The distribution of the next point, r y + N(0, s²), for r and s² given."""
    return NullSpacePoint(
        rate * point.decay,
        rate * rate * point.variance + variance,
        rate * point.covariance,
    )


def visited(
    point: NullSpacePoint, mean: NullSpaceMean, share: jax.Array
) -> tuple[NullSpacePoint, NullSpaceMean]:
    """The point, and the running mean after a step of size `share` to the point."""
    kept = 1 - share
    covariance = kept * point.covariance + share * point.variance
    mean = NullSpaceMean(
        kept * mean.decay + share * point.decay,
        kept * (kept * mean.variance + 2 * share * point.covariance)
        + share * share * point.variance,
    )
    return point._replace(covariance=covariance), mean


def draw(
    key: jax.Array,
    space: Space,
    first: PyTree,
    point: NullSpacePoint,
    mean: NullSpaceMean | None,
) -> tuple[PyTree, PyTree]:
    """A joint draw of the last point and the running mean, for the start `first`.

    Without `mean` the second result is 0, its expectation under q.
    """
    deviation = jnp.sqrt(point.variance)
    noise = scaled(null_space_noise(key, space), deviation)
    end = optax.tree.add(scaled(first, point.decay), noise)
    if mean is None:
        return end, optax.tree.zeros_like(end)
    slope = point.covariance / jnp.where(point.variance > 0, point.variance, 1)
    rest = jnp.maximum(mean.variance - slope * point.covariance, 0)
    other = null_space_noise(jax.random.fold_in(key, 1), space)
    given_end = optax.tree.add(scaled(noise, slope), scaled(other, jnp.sqrt(rest)))
    return end, optax.tree.add(scaled(first, mean.decay), given_end)
