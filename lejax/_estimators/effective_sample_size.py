"""β for a share of effective samples, by bisection on losses that are there already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lejax._estimators.draws import Draws
from lejax._internal.checks import fraction
from lejax._internal.mesh_axes import Axes
from lejax._internal.trees import compute_dtype
from lejax._internal.types import PyTree, Scalar

# From here on exp(-u) is nothing beside 1, in float64 too.
VANISHING = 40.0


def beta_for_share(
    losses: ArrayLike, share: Scalar, *, default: Scalar = 1.0
) -> jax.Array:
    """The β at which the given share of samples is effective.

    Of losses f_1, …, f_J and their weights w_j = exp(-βf_j) it is the root of

        ESS(β)/J = (Σ_j w_j)² / (J Σ_j w_j²) = share,

    which falls from 1 as β grows, as log E exp(-βf) is convex in β. The bisection of
    log β knows where to look: by Popoviciu's inequality no root is below
    2 √(-log share) / (max f - min f), and where exp(-β Δ) vanishes, Δ being the least
    difference from min f, the weights are those of β = ∞. It takes about 30 passes over
    the losses, 60 in float64, and no evaluation.

    Args:
        losses: an array of f_j, in any units, of any shape. What is not finite is left
            out, and J is the number of the others: no β gives it any weight.
        share: between 0 and 1, the ESS/J that is wanted.
        default: what is returned where no two finite losses differ: any β will do then.

    Returns:
        β > 0, a scalar in inverse units of f, at least float32. Where so many losses
        are equal to the least that no β reaches the share, it is 40/Δ, at which all
        others have lost their weight.

    Raises:
        ValueError: `share` is not between 0 and 1.

    Example:
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
    share = jnp.asarray(share, dtype)
    limits = jnp.finfo(dtype)

    counts = jnp.isfinite(losses)
    number = jnp.maximum(counts.sum(), 1).astype(dtype)
    least = jnp.where(counts, losses, limits.max).min(initial=limits.max)
    above = jnp.where(counts, jnp.clip(losses - least, 0, limits.max), 0)
    spread = above.max(initial=0)
    differ = spread > 0
    # In units of the spread, so that no scale of f is special.
    above = above / jnp.where(differ, spread, 1)

    def too_large(log_beta: jax.Array) -> jax.Array:
        w = jnp.where(counts, jnp.exp(-jnp.exp(log_beta) * above), 0)
        mean = w.sum() / number
        # ESS/J = 1 / (1 + Var w/mean²): of nearly equal weights the sums would keep
        # few of the digits that count.
        variance = jnp.where(counts, jnp.square(w - mean), 0).sum() / number
        return share * variance > (1 - share) * mean**2

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        low, high = ends
        middle = (low + high) / 2
        above_root = too_large(middle)
        return jnp.where(above_root, low, middle), jnp.where(above_root, middle, high)

    smallest = jnp.where(above > 0, above, 1).min(initial=1)
    # exp(high) has to be finite.
    high = jnp.log(VANISHING / jnp.maximum(smallest, VANISHING / limits.max**0.75))
    low = jnp.minimum(jnp.log(2 * jnp.sqrt(-jnp.log(share))), high)
    ends = jax.lax.fori_loop(0, limits.nmant + 8, halve, (low, high))
    log_beta = (ends[0] + ends[1]) / 2 - jnp.log(jnp.where(differ, spread, 1))
    beta = jnp.exp(log_beta).clip(limits.tiny, limits.max)
    return jnp.where(differ, beta, jnp.asarray(default, dtype))


class AdaptedState(NamedTuple):
    """The state of `importance` with a `target_share`.

    Attributes:
        next_beta: the β of the next update; 0 before the first.
    """

    next_beta: jax.Array


def no_beta(params: PyTree, axes: Axes) -> AdaptedState:
    """The state before the first update."""
    del axes
    return AdaptedState(jnp.zeros((), compute_dtype(params)))


def adapted(
    state: AdaptedState, log_weights: jax.Array, beta: jax.Array, share: Any
) -> AdaptedState:
    """The state after an update of these log-weights, -βf."""
    # Of the losses βf the root is the factor by which β has to change.
    found = beta * beta_for_share(-log_weights, share)
    limits = jnp.finfo(found.dtype)
    dtype = state.next_beta.dtype
    return AdaptedState(found.clip(limits.tiny, limits.max).astype(dtype))


def beta_in_use(state: AdaptedState, beta: jax.Array) -> jax.Array:
    """The β that the last update found; before the first the one that is passed."""
    found = state.next_beta.astype(beta.dtype)
    return jnp.where(found > 0, found, beta)


class Kept(NamedTuple):
    """A total, and all log-weights that went into it.

    Attributes:
        total: of draws.
        log_weights: -βf, in the order of the draws; -inf where nothing came, or what
            only fills up a share.
        number: how many of them are there.
    """

    total: PyTree
    log_weights: jax.Array
    number: jax.Array


def nothing_kept(total: PyTree, number: int, dtype: Any) -> Kept:
    """Room for so many."""
    return Kept(total, jnp.full(number, -jnp.inf, dtype), jnp.zeros((), jnp.int32))


def keeping(
    absorb: Callable[[PyTree, Draws], PyTree],
    log_weights: Callable[[PyTree], jax.Array],
) -> Callable[[Kept, Draws], Kept]:
    """`absorb`, keeping the log-weights, which it finds in the draws' outputs."""

    def absorb_and_keep(kept: Kept, draws: Draws) -> Kept:
        new = jnp.where(draws.valid, log_weights(draws.outputs), -jnp.inf).ravel()
        return Kept(
            absorb(kept.total, draws),
            jax.lax.dynamic_update_slice(kept.log_weights, new, (kept.number,)),
            kept.number + new.size,
        )

    return absorb_and_keep
