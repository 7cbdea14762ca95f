"""Weights of the points of an update by the ranks of their losses."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lejax._estimators.fitness_shaping import centered_ranks

# The best point has e⁴ times the weight of the worst.
RANK_BETA = 4.0


class Selection(NamedTuple):
    """The weights of an update.

    Attributes:
        shares: w/Σw, (N,); 0 for failed points and beyond J, all 0 if all failed.
        each: 1/J for the J points that count, 0 beyond, (N,).
        num_samples: J.
        effective_sample_size: E = (Σw)²/Σw²; 0 if all failed.
    """

    shares: jax.Array
    each: jax.Array
    num_samples: jax.Array
    effective_sample_size: jax.Array


def select(losses: jax.Array, population: jax.Array) -> Selection:
    """Weights exp(-4 rank), with ranks from 0 to 1 among the finite losses."""
    dtype = losses.dtype
    counts = jnp.arange(losses.size, dtype=jnp.int32) < population
    ranks = centered_ranks(jnp.where(counts, losses, jnp.inf)) + 0.5
    w = jnp.exp(-RANK_BETA * ranks)
    some = w.sum() > 0
    shares = w / jnp.where(some, w.sum(), 1)
    square = jnp.where(some, jnp.square(shares).sum(), 1)
    size = population.astype(dtype)
    each = jnp.where(counts, 1 / size, 0)
    return Selection(shares, each, size, jnp.where(some, 1 / square, 0))


def mean_size(selection: Selection) -> jax.Array:
    """μ: without selection, the mean Σw̃u of pairs has covariance I/μ.

    Each of two partners has its weight; given the losses of all pairs, their weights
    are those of two different ranks at random.
    """
    size = jnp.maximum(selection.effective_sample_size, 1)
    return 1 / jnp.maximum(
        1 / size - (1 - 1 / size) / (selection.num_samples - 1), 0.5 / size
    )
