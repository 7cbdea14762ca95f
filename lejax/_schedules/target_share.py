"""A controller of τ that holds the share of effective samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._info import Info
from lejax._internal.checks import (
    above_one,
    at_most_one,
    first_value,
    fraction,
    number,
    positive,
    positive_or_schedule,
)
from lejax._internal.types import PyTree, Scalar, ScalarOrSchedule
from lejax._samplers.sampler import Sampler


class ShareController(NamedTuple):
    """The arguments of `target_share`, which makes it."""

    share: ScalarOrSchedule
    init_value: Scalar
    gain: Scalar
    max_change: Scalar
    max_ratio: Scalar


def target_share(
    share: ScalarOrSchedule,
    init_value: Scalar,
    *,
    gain: Scalar = 0.1,
    max_change: Scalar = 10.0,
    max_ratio: Scalar = 1e6,
) -> ShareController:
    """A controller of τ, for a target share of effective samples.

    Use it as the `tau` of `local_entropy` or `minimize`, in place of a grid search over
    τ, with `importance` or `importance_by_example`. It does not work with `sgld`, with
    the samplers of `heat`, or with a `beta_share` or `shaping`. It corresponds to
    step-size adaptation in CMA-ES, and to tempering by effective sample size in
    sequential Monte Carlo.

        log τ_{k+1} = log τ_k + γ_k log(D*/D_k),
        D_k = log(J/ESS_k),   D* = -log share.

    So τ rises if more samples than the target are effective, and falls if fewer are.
    D bounds the step, by the inequalities of Talagrand and Jensen:

        |E_q[X] - x|² ≤ 2τ KL(q ‖ φ) ≤ 2τ log(J/ESS)   as J → ∞.

    For small τ it is about β²τ|∇f|². So τ_k D*/D_k is the target of update k, however
    far τ_k is from it, and τ_{k+1} is the geometric mean of these: of all updates at
    first, γ_k = 1/(k + 1), then with weight γ_k = γ of the newest, once that is more.

    If D_k > 2D*, τ is too large by a factor of about two or more, and a few samples
    dominate the estimate. Then the update is zero, and γ_k = 1.

    The paper's rate is βτ: use `local_entropy(..., displacement=True)` and
    `optax.sgd(1.0)`. Under `jax.vmap` the arguments may differ.

    Args:
        share: the target ESS/J, between 0 and 1, or a schedule of the number of updates
            so far. Near 1 the weights hardly matter and steps are small; a share below
            √(10/J) is an error. With a constant share τ rises as gradients fall. A
            share that rises lowers τ as scoping does, in any units of parameters and
            loss: `optax.linear_schedule(0.1, 0.7, num_updates)`.
        init_value: τ_0, a variance, in squared units of the parameters.
        gain: γ, above 0 and at most 1: about 1/γ updates are averaged.
        max_change: the largest factor by which τ changes in an update. It falls by this
            factor if no sample was effective, and rises by it if all losses were equal.
        max_ratio: τ stays within this factor of τ_0.

    Returns:
        A tuple of the arguments. τ_k is `info.tau_used`. τ_{k+1} follows from that
        info, so a restored state continues bit for bit.

    Raises:
        ValueError: `share` is not between 0 and 1, `init_value` is not positive, `gain`
            is not above 0 and at most 1, `max_change` or `max_ratio` is not above 1. In
            use: the first share is below √(10/J), or the effective sample size of the
            sampler is not known or does not depend on τ (`sgld`, the samplers of
            `heat`, and `importance` with a `beta_share` or `shaping`).

    Examples:
        From τ = 1e-6 to the τ at which half of the samples are effective:

        >>> import jax, jax.numpy as jnp, lejax, optax
        >>> def loss(x):
        ...     return jnp.sum(x)
        >>> tau = lejax.target_share(0.5, 1e-6)
        >>> smooth = lejax.local_entropy(
        ...     lejax.importance(1000), tau, key=jax.random.key(0), displacement=True
        ... )
        >>> tx = optax.chain(smooth, optax.sgd(1.0))
        >>> x = jnp.zeros(7)
        >>> state = tx.init(x)
        >>> update = jax.jit(lambda state: tx.update(None, state, x, value_fn=loss)[1])
        >>> for _ in range(50):
        ...     state = update(state)
        >>> print(f"{state[0].info.tau_used:.1f}")  # log(2)/7
        0.1

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 6.5, which calls for a heuristic to
        tune τ; Talagrand, *Transportation cost for Gaussian and other product
        measures*.
    """
    fraction(*first_value("share", share))
    positive("init_value", init_value)
    at_most_one("gain", gain)
    above_one("max_change", max_change)
    above_one("max_ratio", max_ratio)
    return ShareController(share, init_value, gain, max_change, max_ratio)


def first_tau(tau: ScalarOrSchedule | ShareController, sampler: Sampler) -> float:
    """The first value of a number, schedule or controller; refuse a bad controller.

    NaN if it is traced.
    """
    if not isinstance(tau, ShareController):
        return positive_or_schedule("tau", tau)
    if sampler.traits.weighted_samples is None:
        raise ValueError(
            "tau=target_share(...) needs a sampler whose share of effective samples "
            f"depends on tau, got {sampler.name}; pass a number or a schedule as tau, "
            "or lejax.importance without beta_share and without shaping."
        )
    name, share = first_value("share", tau.share)
    least = math.sqrt(10 / sampler.traits.weighted_samples)
    if number(name, share) < least:
        raise ValueError(
            f"{name} must be at least √(10/J) = {least:.2g} for {sampler!r}, got "
            f"{share!r}: below it a few samples may dominate an estimate unnoticed; "
            f"raise it, or num_samples to {math.ceil(10 / float(share) ** 2)}."
        )
    return positive("init_value", tau.init_value)


def current_tau(
    tau: ShareController, step: jax.Array, info: Info, sampler: Sampler
) -> jax.Array:
    """τ after `step` updates, the last of which has this `info`."""
    dtype = info.tau_used.dtype
    first, gain, change, ratio = (
        jnp.asarray(value, dtype)
        for value in (tau.init_value, tau.gain, tau.max_change, tau.max_ratio)
    )
    # Before the first update the info is empty.
    begun = step > 0
    found, wanted = _divergences(tau, jnp.maximum(step, 1) - 1, info, sampler)
    gain = jnp.maximum(gain, 1 / jnp.maximum(step, 1).astype(dtype))
    gain = jnp.where(found > 2 * wanted, 1, gain)
    factor = ((wanted / found) ** gain).clip(1 / change, change)
    follows = jnp.where(begun, info.tau_used, first) * factor
    return jnp.where(begun, follows.clip(first / ratio, first * ratio), first)


def restrained(
    tau: ShareController,
    updates: PyTree,
    step: jax.Array,
    info: Info,
    sampler: Sampler,
) -> PyTree:
    """The updates, or zeros if τ was much too large for them."""
    found, wanted = _divergences(tau, step, info, sampler)
    return optax.tree.where(found > 2 * wanted, optax.tree.zeros_like(updates), updates)


def _divergences(
    controller: ShareController, step: jax.Array, info: Info, sampler: Sampler
) -> tuple[jax.Array, jax.Array]:
    """D and D* of update `step`, both positive and finite."""
    dtype, share = info.tau_used.dtype, controller.share
    share = share(step) if callable(share) else share
    tiny, eps = jnp.finfo(dtype).tiny, jnp.finfo(dtype).eps
    found = info.effective_sample_size / jnp.asarray(
        sampler.traits.weighted_samples, dtype
    )
    # No effective samples, or NaN, counts as the least share.
    found = jnp.where(found > tiny, found, tiny)
    # A schedule may leave the interval (0, 1).
    share = jnp.asarray(share, dtype).clip(tiny, 1 - eps)
    return jnp.maximum(-jnp.log(found), tiny), -jnp.log(share)
