"""Fitness shaping: the losses of an update by their ranks, or standardised."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

Shaping = Literal["ranks", "standardized"]


def check_shaping(shaping: Any, credit: Any, beta_share: Any) -> None:
    """Raise if `shaping` is unknown, or excluded by the other options."""
    if shaping is None:
        return
    if shaping not in get_args(Shaping):
        names = " or ".join(repr(name) for name in get_args(Shaping))
        raise ValueError(
            f"shaping must be {names}, got {shaping!r}; leave it out for local entropy."
        )
    if credit:
        raise ValueError(
            f"credit={credit!r} with shaping={shaping!r}: shaped losses are not sums "
            "over examples; leave one of them out."
        )
    if beta_share is not None:
        raise ValueError(
            f"beta_share={beta_share!r} with shaping={shaping!r}: shaped losses "
            "already have a fixed scale for beta; leave one of them out."
        )


def shaped(shaping: Shaping, losses: jax.Array) -> jax.Array:
    """The losses of an update, shaped; +inf for each that is not finite."""
    return (centered_ranks if shaping == "ranks" else standardized)(losses)


def centered_ranks(losses: jax.Array) -> jax.Array:
    """Ranks from -½ (least loss) to ½ (greatest); ties share their mean rank."""
    failed = ~jnp.isfinite(losses)
    ranks = jax.scipy.stats.rankdata(jnp.where(failed, jnp.inf, losses))
    others = jnp.maximum((~failed).sum() - 1, 1).astype(losses.dtype)
    centred = (ranks.astype(losses.dtype) - 1) / others - 0.5
    return jnp.where(failed, jnp.inf, centred)


def standardized(losses: jax.Array) -> jax.Array:
    """The losses with mean 0 and standard deviation 1; 0 if all are equal."""
    counts = jnp.isfinite(losses)
    number = jnp.maximum(counts.sum(), 1).astype(losses.dtype)

    def of_one_size(values: jax.Array) -> jax.Array:
        """The values, scaled so that no square overflows or underflows."""
        values = jnp.where(counts, values, 0)
        # With /16, its inverse is not subnormal: some processors flush those to 0.
        size = jnp.abs(values).max() / 16
        return values / jnp.where(size > jnp.finfo(size.dtype).tiny, size, 1)

    values = of_one_size(losses)
    # Equal losses must not differ by the rounding of their mean.
    above = values - jnp.where(counts, values, jnp.inf).min()
    mean = jnp.where(counts, above / number, 0).sum()
    centred = of_one_size(above - mean)
    deviation = jnp.sqrt(jnp.square(centred).sum() / number)
    return jnp.where(counts, centred / jnp.where(deviation > 0, deviation, 1), jnp.inf)
