"""One update of the mean, the scale and the shape of a search's Gaussian."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._search.selection import Selection, mean_size
from lejax._search.state import SearchState


class Moved(NamedTuple):
    """The Gaussian after an update, and the condition number of its covariance."""

    mean: jax.Array
    scale: jax.Array
    root: jax.Array
    scale_path: jax.Array
    shape_path: jax.Array
    largest: jax.Array
    condition: jax.Array


def pairs(key: jax.Array, size: int, d: int, dtype: Any) -> jax.Array:
    """Standard normal draws (size, d), each followed by its negative."""
    e = jax.random.normal(key, (size // 2, d), dtype)
    return jnp.stack([e, -e], 1).reshape(size, d)


def moved(
    state: SearchState, u: jax.Array, selection: Selection, max_change: Any
) -> Moved:
    """The next mean, scale and shape, from draws u and their weights."""
    d = u.shape[1]
    size = selection.effective_sample_size
    mean_step = selection.shares @ u
    mu = mean_size(selection)
    # CSA: the path grows if steps agree with each other.
    c = (mu + 2) / (d + mu + 5)
    damping = 1 + 2 * jnp.maximum(0, jnp.sqrt((mu - 1) / (d + 1)) - 1) + c
    scale_path = (1 - c) * state.scale_path + jnp.sqrt(c * (2 - c) * mu) * mean_step
    length = jnp.sqrt(jnp.square(scale_path).sum()) / normal_length(d)
    scale = state.scale * jnp.exp(jnp.minimum(1, c / damping * (length - 1)))
    # The rank-one path, without the steps during which σ is far too small.
    run_step = (state.run_step + 1).astype(u.dtype)
    unbiased = length / jnp.sqrt(1 - (1 - c) ** (2 * run_step))
    kept = unbiased < 1.4 + 2 / (d + 1)
    c = (4 + mu / d) / (d + 4 + 2 * mu / d)
    step = state.root @ mean_step
    added = jnp.where(kept, jnp.sqrt(c * (2 - c) * mu), 0) * step
    shape_path = (1 - c) * state.shape_path + added
    path = jnp.linalg.solve(state.root, shape_path)
    rate = 2 / ((d + 1.3) ** 2 + size)
    change = moment_change(u, selection, mean_step)
    change += rate * (jnp.outer(path, path) - jnp.eye(d, dtype=u.dtype))
    found = reshaped(state.root, change, max_change)
    of_all = Moved(
        state.mean + state.scale * step,
        scale * found.size,
        found.root,
        scale_path,
        shape_path / found.size,
        found.largest,
        found.condition,
    )
    # If all points failed, nothing was learnt.
    nothing = Moved(
        state.mean,
        state.scale,
        state.root,
        state.scale_path,
        state.shape_path,
        found.largest,
        found.condition,
    )
    return jax.tree.map(lambda new, old: jnp.where(size > 0, new, old), of_all, nothing)


def normal_length(d: int) -> float:
    """E|u| for u ~ N(0, I) in d dimensions, to five digits and more."""
    return math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))


def moment_change(
    u: jax.Array, selection: Selection, mean_step: jax.Array
) -> jax.Array:
    """The change of the shape by the weighted moments of the draws, (d, d).

    ρ(Σw̃uuᵀ - mean uuᵀ) - ρ²(mmᵀ - noise), with ρ = min(½, E/(d^{1.5} + E)).
    """
    d = u.shape[1]
    size = selection.effective_sample_size
    rho = jnp.minimum(0.5, size / (d**1.5 + size))
    second = ((selection.shares - selection.each)[:, None] * u).T @ u
    # The noise in m, from the pairs: each is one independent unit.
    weights = selection.shares.reshape(-1, 2)
    signed, total = weights[:, 0] - weights[:, 1], weights.sum(1)
    parts = signed[:, None] * u[::2] - total[:, None] * mean_step
    noise = jnp.square(parts).sum() / (1 - 2 / selection.num_samples)
    square = jnp.outer(mean_step, mean_step) - noise / d * jnp.eye(d, dtype=u.dtype)
    return rho * second - rho**2 * square


class Shape(NamedTuple):
    """A symmetric root of determinant 1, and what it was divided by.

    Attributes:
        root: A.
        size: the geometric mean of the standard deviations before the division.
        largest: the largest eigenvalue of A.
        condition: the condition number of AAᵀ.
    """

    root: jax.Array
    size: jax.Array
    largest: jax.Array
    condition: jax.Array


def reshaped(root: jax.Array, change: jax.Array, max_change: Any) -> Shape:
    """The root of A(I + change)Aᵀ, the bracket's eigenvalues clipped to [1/c, c]."""
    values, vectors = jnp.linalg.eigh(change)
    factors = jnp.clip(1 + values, 1 / max_change, max_change)
    half = (root @ vectors) * jnp.sqrt(factors)
    values, vectors = jnp.linalg.eigh(half @ half.T)
    largest = values[-1]
    # Below this an eigenvalue is rounding. A restart comes before.
    floor = largest * jnp.finfo(root.dtype).eps
    deviations = jnp.sqrt(jnp.maximum(values, floor))
    size = jnp.exp(jnp.log(deviations).mean())
    deviations /= size
    condition = largest / jnp.maximum(values[0], floor)
    new = (vectors * deviations) @ vectors.T
    return Shape(new, size, deviations[-1], condition)
