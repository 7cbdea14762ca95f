"""Fitness shaping: the losses of an update by their ranks, or standardised.

What a loss becomes depends on all others of the update. So there are two passes over
the same draws: one evaluates and keeps J numbers, the other weighs what is drawn again.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from lejax._estimators.draws import Draws, Plan, fold_draws
from lejax._estimators.moments import (
    LossMoments,
    empty_moments,
    loss_moments,
    merge_moments,
    of_members,
    pooled,
)
from lejax._internal.trees import compute_dtype
from lejax._spaces.space import Space

Shaping = Literal["ranks", "standardized"]


class ShapedLosses(NamedTuple):
    """The losses of an update, shaped, and what they were.

    Attributes:
        losses: (J,), by the number of the evaluation; what was not finite is +inf.
        moments: of the losses as they were.
    """

    losses: jax.Array
    moments: LossMoments


def check_shaping(shaping: Any, credit: Any, target_share: Any) -> None:
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
    if target_share is not None:
        raise ValueError(
            f"target_share={target_share!r} with shaping={shaping!r}: shaped losses "
            "have a scale already, choose beta for it; leave one of them out."
        )


def shaped_losses(
    shaping: Shaping, key: jax.Array, space: Space, variance: Any, plan: Plan
) -> ShapedLosses:
    """Evaluate all losses of the update, and shape them; the same for all members."""
    dtype = compute_dtype(space.zeros)
    nothing = jnp.zeros(plan.num_samples, dtype), empty_moments(dtype)

    def keep(total: tuple[jax.Array, LossMoments], draws: Draws) -> Any:
        values, valid = draws.outputs, draws.valid
        kept, moments = total
        # What only fills up a share has the number of another one.
        numbers = jnp.where(valid, draws.numbers, plan.num_samples)
        found = loss_moments(values, jnp.isfinite(values) & valid, valid)
        return (
            kept.at[numbers].set(values, mode="drop"),
            merge_moments(moments, found),
        )

    losses, moments = fold_draws(
        key,
        space,
        variance,
        lambda u, sign, number: space.value_fn(u, number, sign=sign),
        keep,
        nothing,
        plan,
    )
    if space.axis_name is not None:
        losses = jax.lax.psum(losses, space.axis_name)
        moments = pooled(of_members(moments, space.axis_name))
    return ShapedLosses(_SHAPINGS[shaping](losses), moments)


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


_SHAPINGS = {"ranks": centered_ranks, "standardized": standardized}
