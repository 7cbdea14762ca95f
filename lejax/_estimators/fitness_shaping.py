"""Fitness shaping: the losses of an update by their ranks, or standardised."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

Shaping = Literal["ranks", "standardized"]


def check_shaping(shaping: Any, credit: Any, beta_share: Any) -> None:
    """Refuse what is no shaping, and what cannot go with one."""
    if shaping is None:
        return
    if shaping not in get_args(Shaping):
        names = " or ".join(repr(name) for name in get_args(Shaping))
        raise ValueError(
            f"shaping must be {names}, got {shaping!r}; leave it out for local entropy."
        )
    if credit:
        raise ValueError(
            f"credit={credit!r} with shaping={shaping!r}: shaped losses are no sums "
            "over examples; leave one of them out."
        )
    if beta_share is not None:
        raise ValueError(
            f"beta_share={beta_share!r} with shaping={shaping!r}: shaped losses "
            "have a scale already, choose beta for it; leave one of them out."
        )


def shaped(shaping: Shaping, losses: jax.Array) -> jax.Array:
    """All losses of an update, shaped; +inf where one is not finite."""
    return (centered_ranks if shaping == "ranks" else standardized)(losses)


def centered_ranks(losses: jax.Array) -> jax.Array:
    """From -½ of the least loss to ½ of the greatest; equal ones share a mean rank."""
    failed = ~jnp.isfinite(losses)
    ranks = jax.scipy.stats.rankdata(jnp.where(failed, jnp.inf, losses))
    others = jnp.maximum((~failed).sum() - 1, 1).astype(losses.dtype)
    centred = (ranks.astype(losses.dtype) - 1) / others - 0.5
    return jnp.where(failed, jnp.inf, centred)


def standardized(losses: jax.Array) -> jax.Array:
    """Of mean 0 and standard deviation 1; 0 where all are equal."""
    counts = jnp.isfinite(losses)
    number = jnp.maximum(counts.sum(), 1).astype(losses.dtype)

    def of_one_size(values: jax.Array) -> jax.Array:
        """So that no square overflows, or vanishes."""
        values = jnp.where(counts, values, 0)
        # Its inverse is no subnormal number, which some processors take for 0.
        size = jnp.abs(values).max() / 16
        return values / jnp.where(size > jnp.finfo(size.dtype).tiny, size, 1)

    values = of_one_size(losses)
    # Equal losses must not differ by the rounding of their mean.
    above = values - jnp.where(counts, values, jnp.inf).min()
    mean = jnp.where(counts, above / number, 0).sum()
    centred = of_one_size(above - mean)
    deviation = jnp.sqrt(jnp.square(centred).sum() / number)
    return jnp.where(counts, centred / jnp.where(deviation > 0, deviation, 1), jnp.inf)
