"""A Langevin chain where the loss is flat: known in closed form but for its start.

There the moves are y ← r y + N(0, s²), r = 1 - ε/2τ and s² = Tε, so that the points and
their running mean are Gaussian given y_1, with variances that two recursions follow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._internal.trees import PyTree, scaled
from lejax._spaces.space import Space, null_space_noise


class NullSpacePoint(NamedTuple):
    """A point y = ρ y_1 + N(0, v), given the start y_1.

    Attributes:
        decay: ρ.
        variance: v.
        covariance: of the point and the mean of the points so far.
    """

    decay: jax.Array
    variance: jax.Array
    covariance: jax.Array


class NullSpaceMean(NamedTuple):
    """The running mean of points, σ y_1 + N(0, v).

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
    """The mean before its first point, of which it takes nothing over."""
    return NullSpaceMean(jnp.zeros((), dtype), jnp.zeros((), dtype))


def moved(
    point: NullSpacePoint, rate: jax.Array, variance: jax.Array
) -> NullSpacePoint:
    """The point r y + N(0, s²), for a rate r and a variance s²."""
    return NullSpacePoint(
        rate * point.decay,
        rate * rate * point.variance + variance,
        rate * point.covariance,
    )


def visited(
    point: NullSpacePoint, mean: NullSpaceMean, share: jax.Array
) -> tuple[NullSpacePoint, NullSpaceMean]:
    """The same point, after the mean moved by a share of its distance to it."""
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
    """The last point and the mean, jointly, for the start `first`.

    One draw of the whole space; a second for the mean, or 0, which it is under q, where
    it is not asked for.
    """
    spread = jnp.sqrt(point.variance)
    noise = scaled(null_space_noise(jax.random.fold_in(key, 0), space), spread)
    end = optax.tree.add(scaled(first, point.decay), noise)
    if mean is None:
        return end, optax.tree.zeros_like(end)
    slope = point.covariance / jnp.where(point.variance > 0, point.variance, 1)
    rest = jnp.maximum(mean.variance - slope * point.covariance, 0)
    more = null_space_noise(jax.random.fold_in(key, 1), space)
    given_end = optax.tree.add(scaled(noise, slope), scaled(more, jnp.sqrt(rest)))
    return end, optax.tree.add(scaled(first, mean.decay), given_end)
