"""Local entropy and heat over Gaussians whose covariance is learnt with their mean."""

from __future__ import annotations

from typing import get_args

import jax
import optax

from lejax._covariance.covariance import Structure
from lejax._internal.checks import (
    above_one,
    at_most_one,
    bounds_about,
    first_value,
    inverse_of_temperature,
    number,
    positive,
    positive_count,
    typed_key,
)
from lejax._internal.types import Mask, PyTree, Scalar, ScalarOrSchedule
from lejax._samplers.gradient import check_sampler
from lejax._samplers.sampler import Sampler
from lejax._transforms.gaussian_step import Gaussian, gaussian_step
from lejax._transforms.smoothing import of_selected, rules_of


def gaussian(
    sampler: Sampler,
    tau: Scalar,
    *,
    key: jax.Array,
    covariance: Structure = "diagonal",
    rank: int = 8,
    beta: ScalarOrSchedule = 1.0,
    temperature: ScalarOrSchedule = 0.0,
    covariance_rate: ScalarOrSchedule = 0.2,
    max_change: Scalar = 10.0,
    widening: Scalar = 1.0,
    bounds: tuple[Scalar, Scalar] | None = None,
    mask: Mask = None,
    has_aux: bool | PyTree = False,
) -> optax.GradientTransformationExtraArgs:
    """Local entropy or heat with φ = N(x, Σ), and Σ learnt as well as x.

    By `importance`, Algorithm 1 with both moments: of the Gaussians the one nearest to
    q, KL(q ‖ N(m, C)), has the moments of q,

        q ∝ exp(-β(f + T log φ)) φ,   x' = E_q[X],
        Σ' = (1 - ρ)Σ + ρ Cov_q + ρ(1 - ρ) (x' - x)(x' - x)ᵀ.

    By `pathwise`, its twin for heat, a step of natural gradient on E_φ[f + T log φ] =
    E_φ f - T H(φ), which is T KL(φ ‖ p) for p ∝ exp(-f/T), and looks for a mode of it:

        Σ'⁻¹ = Σ⁻¹ + ρβ (E_φ ∇²f - TΣ⁻¹),   x' = x - βΣ'' E_φ ∇f,

    Σ'' being Σ' at ρ = 1, and ΣE_φ∇²f = E_φ[(X - x)∇fᵀ]. On a quadratic loss with ρ = 1
    both are the same step.

    Without temperature Σ shrinks for ever, where the Hessian is positive as 1/(kρβ)
    times its inverse, and x goes to a minimum: by `pathwise` in steps of 1/(ρk) of
    Newton's, so that after k updates the distance is of the order k^{-1/ρ}, and longer
    where the curvature met on the way was above that at the minimum (Rosenbrock's
    valley: it all but stands still). A small ρ keeps steps long; to end at a minimum
    let T fall with a schedule instead. With T > 0 it stops: `pathwise` at the
    Gaussian nearest to p in KL(φ ‖ p), `importance` at the one with the moments of
    p^{βT} φ^{1-βT}, so that at β = 1/T it has those of p, the nearest in KL(p ‖ φ), and
    below that lies between the two. With f the negative logarithm of a posterior
    density and T = 1 these are its mean and covariance. If p is Gaussian, and Σ may be
    its covariance, all β have the same fixed point, and there no noise is left: losses
    f + T log φ are equal, and so are weights.

    It replaces the incoming updates by x - x', so it comes first, and `optax.sgd(1.0)`
    behind it is the whole step. Call `update(updates, state, params, value_fn=...,
    batch=...)` as for `local_entropy`.

    Args:
        sampler: `importance`, for local entropy, or `pathwise`, for heat. They draw all
            parameters: reduction and credit by example do not apply. `importance` with
            a `beta_share` finds its β, here at most 1/T. No draw is shared under
            signs unless `signs_per_draw` says so, as their squares are the same.
        tau: τ, the variance that Σ begins with, Σ = τI, in squared units of the
            parameters.
        key: a typed key, `jax.random.key(seed)`.
        covariance: "scale", one variance for each leaf; "diagonal", one for each
            number; "low_rank", a diagonal and a matrix of rank r, by a step of
            principal factors an update, O(dr) beside the draws, to an optimum that may
            be local where narrow directions matter; "full", for up to 2048
            numbers: a matrix, of which every update takes O(d³), and needs more than d
            effective samples, or a small ρ.
        rank: r, of "low_rank".
        beta: β > 0, the inverse temperature of a step, in inverse units of f, or a
            schedule of the number of updates so far. Where there is a temperature, at
            most 1/T, at which q is p itself. With a `beta_share` that of the first
            update alone: begin low, as few effective samples give a bad start.
        temperature: T ≥ 0, in units of f, or a schedule.
        covariance_rate: ρ, above 0 and at most 1, or a schedule: Σ is that of about 1/ρ
            updates. With few effective samples a large ρ makes Σ shrink by its noise.
        max_change: c > 1: no variance, in any direction, changes by more than this
            factor in an update, and x moves by at most √c standard deviations, in the
            mean square over all directions. Of low rank, what is known of a step
            may add up to more: then less of it is taken.
        widening: s ≥ 1, of `importance` without a `beta_share`: draws are of N(x, s²Σ),
            with weights that leave q what it is. Where p is curved, or has heavier
            tails than φ, so have the weights (`info.pareto_k` above .7), and Σ comes
            out too small with healthy effective samples: on a curved p of two
            dimensions, J = 1000, deviations are .86 and .63 of the true ones, and 1.00
            and .97 by s = 2 (experiments/benchmarks/curved.py); a smaller ρ changes
            nothing. It costs a factor of about s^d/(2 - 1/s²)^{d/2} in effective
            samples.
        bounds: the least and the greatest variance, in any direction; `state.bounded`
            tells how many are kept there. By default τ/10¹⁰ and 10¹⁰τ.
        mask: which leaves to perturb, as in `local_entropy`.
        has_aux: whether `value_fn` returns a pair, as in `local_entropy`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `GaussianState`. Of its info,
        `objective` is -(1/β) log E_φ exp(-β(f + T log φ)), which at β = 1/T is -T log ∫
        exp(-f/T), or by `pathwise` E_φ[f + T log φ], which is above that; `tau_used` is
        the mean variance of the draws, and `squared_error` in units of Σ. Where nothing
        could be estimated, x and Σ stay. Where Σ keeps more than 2¹⁸ numbers
        `signal_standard_error` is not known.

    Raises:
        ValueError: `tau` or `beta` is not positive, `temperature` is negative or above
            1/β, `covariance_rate` is not above 0 and at most 1, `widening` is below 1,
            or passed where there is no β to weigh by, `max_change` is not
            above 1, `bounds` are no two positive numbers about τ, `covariance` is
            another word, or "full" for more than 2048 numbers, `rank` is no positive
            integer, or above the number of parameters, the sampler is another, or as
            `local_entropy` says.
        TypeError: as `local_entropy`.

    Examples:
        The posterior of two numbers, from a prior N(0, I) and an observation y = 1 of
        their sum with variance ¼, by evaluations alone: mean 4/9 of each.

        >>> import jax, jax.numpy as jnp, lejax, optax
        >>> def f(u):
        ...     return 2 * (1 - jnp.sum(u)) ** 2 + jnp.sum(u**2) / 2
        >>> tx = optax.chain(
        ...     lejax.gaussian(
        ...         lejax.importance(1000),
        ...         1.0,
        ...         key=jax.random.key(0),
        ...         covariance="full",
        ...         temperature=1.0,
        ...     ),
        ...     optax.sgd(1.0),
        ... )
        >>> u = jnp.zeros(2)
        >>> state = tx.init(u)
        >>> @jax.jit
        ... def update(u, state):
        ...     updates, state = tx.update(None, state, u, value_fn=f)
        ...     return optax.apply_updates(u, updates), state
        >>> for _ in range(60):
        ...     u, state = update(u, state)
        >>> variances = state[0].covariance.variances(u)
        >>> print(f"{u[0]:.3f} {u[1]:.3f}, {variances[0]:.3f} {variances[1]:.3f}")
        0.444 0.444, 0.556 0.556

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, sections 3 and 4, and section 7, which asks
        for mean and covariance; Khan, Rue, *The Bayesian learning rule* (natural
        gradients); Rubinstein, Kroese, *The cross-entropy method*; Hansen, *The CMA
        evolution strategy*.
    """
    check_sampler(sampler, "local entropy", "heat")
    if not sampler.traits.learns_covariance:
        raise ValueError(
            f"gaussian needs a sampler that a covariance can learn from, got "
            f"{sampler.name}; pass lejax.importance(...), without shaping, or "
            "lejax.pathwise(...)."
        )
    if covariance not in get_args(Structure):
        raise ValueError(
            f"covariance must be one of {get_args(Structure)}, got {covariance!r}; "
            "pass for example covariance='diagonal'."
        )
    typed_key(key)
    rank = positive_count("rank", rank)
    positive("tau", tau)
    inverse_of_temperature(beta, temperature)
    at_most_one(*first_value("covariance_rate", covariance_rate))
    above_one("max_change", max_change)
    factor = number("widening", widening, "at least 1", least=1, example=2.0)
    if factor != 1 and not sampler.traits.weighs_by_beta:
        raise ValueError(
            f"widening={widening!r} needs weights with a β that is passed, got "
            f"{sampler!r}; pass importance without a beta_share, or leave it out."
        )
    schedules, numbers = rules_of(beta, temperature, covariance_rate, max_change)
    settings = Gaussian(
        sampler,
        schedules,
        covariance,
        rank,
        tau,
    )
    numbers = (*numbers, widening, *bounds_about(tau, bounds))
    return of_selected(settings, gaussian_step, (numbers,), key, mask, has_aux, tau)
