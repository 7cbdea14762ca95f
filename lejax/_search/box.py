"""A box of parameters: points outside are reflected at its bounds."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def reflect(
    points: jax.Array, lower: jax.Array, upper: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Points (..., d) reflected into the box, and the sign of each reflection.

    The sign is -1 if a coordinate was reflected an odd number of times, and 1
    otherwise. Points inside keep all their bits. A bound may be infinite.
    """
    width = upper - lower
    closed = jnp.isfinite(width)
    period, start = jnp.where(closed, width, 1), jnp.where(closed, lower, 0)
    folds = jnp.floor((points - start) / period)
    rest = points - start - folds * period
    odd = folds % 2 == 1
    folded = start + jnp.where(odd, period - rest, rest)
    mirrored = jnp.where(points < lower, 2 * lower - points, 2 * upper - points)
    inside = (points >= lower) & (points <= upper)
    found = jnp.where(inside, points, jnp.where(closed, folded, mirrored))
    sign = jnp.where(inside | (closed & ~odd), 1, -1)
    return found.clip(lower, upper), sign.astype(points.dtype)
