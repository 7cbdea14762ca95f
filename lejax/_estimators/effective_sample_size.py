"""β for a given share of effective samples, by bisection on known losses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lejax._internal.checks import fraction
from lejax._internal.types import Scalar

# From here on exp(-u) is negligible beside 1, in float64 too.
VANISHING = 40.0


def beta_for_share(
    losses: ArrayLike, share: Scalar, *, default: Scalar = 1.0
) -> jax.Array:
    """The β at which the given share of samples is effective.

    Use it to choose β if the scale of the losses is unknown; `importance` with a
    `beta_share` does so in every update. Do not weigh the same losses by it: a β that
    is fitted to the draws changes what they estimate. In sequential Monte Carlo, the
    temperatures of adaptive tempering are found this way.

    For losses f_1, …, f_J with weights w_j = exp(-βf_j), it solves

        ESS(β)/J = (Σ_j w_j)² / (J Σ_j w_j²) = share

    by bisection on log β. The left-hand side falls from 1 as β grows. This takes about
    35 passes over the losses, 64 in float64, and no evaluation.

    Args:
        losses: the f_j, in an array of any shape, in any units. Losses that are not
            finite are left out, and J is the number of the others.
        share: the wanted ESS/J, between 0 and 1.
        default: returned if no two finite losses differ: ESS/J is then 1 for any β.

    Returns:
        β > 0, a scalar in inverse units of f, at least float32. If too many losses
        equal the minimum to reach the share, it is 40/Δ, with Δ the least positive
        difference from the minimum: all other samples then have no weight.

    Raises:
        ValueError: `share` is not between 0 and 1.

    Examples:
        >>> import jax.numpy as jnp, lejax
        >>> losses = jnp.array([1.0, 2.0, 4.0, jnp.inf])
        >>> beta = lejax.beta_for_share(losses, 0.5)
        >>> w = jnp.exp(-beta * losses)
        >>> print(f"{beta:.2f} {w.sum() ** 2 / (w**2).sum() / 3:.2f}")
        1.40 0.50

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 5.1.2 (Algorithm 4), where β = 1;
        Beskos, Jasra, Kantas, Thiery, *On the convergence of adaptive sequential Monte
        Carlo methods*, for temperatures by the effective sample size.
    """
    fraction("share", share)
    losses = jnp.asarray(losses)
    dtype = jnp.float64 if losses.dtype == jnp.float64 else jnp.float32
    losses = losses.astype(dtype).ravel()
    if not losses.size:
        return jnp.asarray(default, dtype)
    share = jnp.asarray(share, dtype)
    limits = jnp.finfo(dtype)

    counts = jnp.isfinite(losses)
    number = jnp.maximum(counts.sum(), 1).astype(dtype)
    least = jnp.where(counts, losses, limits.max).min(initial=limits.max)
    above = jnp.where(counts, jnp.clip(losses - least, 0, limits.max), jnp.inf)
    ordered = jnp.sort(above)
    spread = jnp.where(counts, above, 0).max(initial=0)
    differ = spread > 0
    smallest = jnp.where(above > 0, above, jnp.inf).min(initial=jnp.inf)
    # In units of Δ, the difference from the minimum that J · share samples do not
    # exceed. Above β = 40/Δ, fewer samples have any weight, so no root is there. The
    # unit adapts to any scale of f, also if a penalty is far larger.
    place = jnp.ceil(share * number).astype(jnp.int32) - 1
    scale = jnp.maximum(ordered.at[place].get(mode="clip"), smallest)
    scale = jnp.where(differ, scale, 1)
    above = jnp.where(counts, jnp.minimum(above / scale, limits.max), 0)

    def too_large(log_beta: jax.Array) -> jax.Array:
        w = jnp.where(counts, jnp.exp(-jnp.exp(log_beta) * above), 0)
        mean = w.sum() / number
        # ESS/J = 1 / (1 + Var w/mean²). With nearly equal weights, sums of w and w²
        # would lose the digits that count.
        variance = jnp.where(counts, jnp.square(w - mean), 0).sum() / number
        return share * variance > (1 - share) * mean**2

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        low, high = ends
        middle = (low + high) / 2
        above_root = too_large(middle)
        return jnp.where(above_root, low, middle), jnp.where(above_root, middle, high)

    # By Popoviciu's inequality, no root is below 2 √(-log share) / (max f - min f).
    high = jnp.log(VANISHING)
    low = jnp.log(2 * jnp.sqrt(-jnp.log(share))) - jnp.log(above.max(initial=1))
    ends = jax.lax.fori_loop(0, limits.nmant + 12, halve, (low, high))
    log_beta = (ends[0] + ends[1]) / 2 - jnp.log(scale)
    beta = jnp.exp(log_beta).clip(limits.tiny, limits.max)
    return jnp.where(differ, beta, jnp.asarray(default, dtype))
