"""When a run of a search has stalled, so that the next may begin."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

# The rule of medians looks back at most about so many updates.
WINDOW = 512


def history_size(d: int, population: int) -> int:
    """How many updates are kept."""
    return WINDOW + math.ceil(30 * d / population)


def stalled(
    history: jax.Array,
    run_step: jax.Array,
    losses: jax.Array,
    population: jax.Array,
    deviation: jax.Array,
    condition: jax.Array,
    d: int,
) -> jax.Array:
    """True if the losses are flat, the scale or the shape is at its end, or no gain.

    `history` has the least loss of each update, the latest last; `deviation` is the
    largest standard deviation of the draws in units of the first scale.
    """
    eps = jnp.finfo(history.dtype).eps
    updates = 30 * d / population.astype(history.dtype)
    return (
        is_flat(history, run_step, losses, population, updates)
        # In float64, 1.8e-12 and 1e14.
        | (deviation < eps**0.75)
        | (condition > 1 / (45 * eps))
        | no_gain(history, run_step, updates)
    )


def is_flat(
    history: jax.Array,
    run_step: jax.Array,
    losses: jax.Array,
    population: jax.Array,
    updates: jax.Array,
) -> jax.Array:
    """True if only rounding tells the latest losses from each other, or all failed."""
    length = 10 + jnp.ceil(updates).astype(jnp.int32)
    recent = jnp.arange(history.size, dtype=jnp.int32) >= history.size - length
    counts = (jnp.arange(losses.size, dtype=jnp.int32) < population) & jnp.isfinite(
        losses
    )
    flat = spread_is_rounding(history, recent) & spread_is_rounding(losses, counts)
    return (run_step > length) & flat


def spread_is_rounding(values: jax.Array, among: jax.Array) -> jax.Array:
    """True if these values are equal, or differ by 512 eps of the largest at most."""
    low = jnp.where(among, values, jnp.inf).min()
    high = jnp.where(among, values, -jnp.inf).max()
    largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
    finite = jnp.isfinite(largest)
    span = jnp.where(finite, high, 0) - jnp.where(finite, low, 0)
    rounding = 512 * jnp.finfo(values.dtype).eps * largest
    # With none among them, low is above high.
    return (low >= high) | (finite & (span <= rounding))


def no_gain(history: jax.Array, run_step: jax.Array, updates: jax.Array) -> jax.Array:
    """True if the medians of the last and first 30 % of a window show no decrease.

    It is tried every tenth update, with a window that grows with the run.
    """
    least = 120 + updates
    ran = run_step.astype(history.dtype)
    due = (ran >= least) & (run_step % 10 == 0)

    def compare(history: jax.Array) -> jax.Array:
        age = history.size - 1 - jnp.arange(history.size, dtype=jnp.int32)
        wanted = jnp.floor(least + 0.2 * ran)
        window = jnp.minimum(
            jnp.minimum(wanted.astype(jnp.int32), run_step), history.size
        )
        part = jnp.maximum(10, window * 3 // 10)
        first = masked_median(history, (age < window) & (age >= window - part), part)
        return masked_median(history, age < part, part) >= first

    def no(history: jax.Array) -> jax.Array:
        del history
        return jnp.zeros((), bool)

    return jax.lax.cond(due, compare, no, history)


def masked_median(values: jax.Array, among: jax.Array, count: Any) -> jax.Array:
    """The median of the `count` values in a mask."""
    ordered = jnp.sort(jnp.where(among, values, jnp.inf))
    low, high = ordered[(count - 1) // 2], ordered[count // 2]
    # Not (low + high)/2, which may overflow.
    return low / 2 + high / 2
