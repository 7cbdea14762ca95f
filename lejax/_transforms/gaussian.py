"""Local entropy and heat over Gaussians whose mean and covariance are both learnt."""

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
    """Local entropy or heat with φ = N(x, Σ), which learns Σ as well as x.

    Use it if parameters differ in scale, or if you need a covariance: with
    `temperature=1.0` and f = -log of a posterior density it fits a Gaussian to the
    posterior. Avoid it for large networks: learning Σ takes many effective samples, and
    reduction and credit by example do not apply. Its relatives are CMA-ES and the
    cross-entropy method (`importance`), and natural evolution strategies and
    variational inference (`pathwise`).

    With `importance` this is Algorithm 1 with both moments. The Gaussian nearest to q,
    by KL(q ‖ N(m, C)), has the moments of q:

        q ∝ exp(-β(f + T log φ)) φ,   x' = E_q[X],
        Σ' = (1 - ρ)Σ + ρ Cov_q + ρ(1 - ρ) (x' - x)(x' - x)ᵀ.

    With `pathwise` it is a natural gradient step on E_φ[f + T log φ] = E_φ f - T H(φ),
    up to a constant T KL(φ ‖ p) for p ∝ exp(-f/T). It finds one mode of p:

        Σ'⁻¹ = Σ⁻¹ + ρβ (E_φ ∇²f - TΣ⁻¹),   x' = x - βΣ'' E_φ ∇f,

    with Σ'' = Σ' at ρ = 1, and ΣE_φ∇²f = E_φ[(X - x)∇fᵀ]. On a quadratic loss with
    ρ = 1 both samplers take the same step.

    If T = 0, x goes to a minimum and Σ shrinks to 0: after k updates it is about
    1/(kρβ) times the inverse Hessian, if that is positive. The steps of `pathwise` are
    then 1/(ρk) of Newton's, and after k updates the distance to the minimum is of the
    order k^{-1/ρ}. It is longer if the curvature was larger on the way: in Rosenbrock's
    valley x nearly stops. A small ρ keeps steps long; to end at a minimum, lower T by a
    schedule.

    If T > 0, Σ converges. `pathwise` ends at the Gaussian nearest to p by KL(φ ‖ p).
    `importance` ends at the one with the moments of p^{βT} φ^{1-βT}. At β = 1/T these
    are the moments of p, nearest by KL(p ‖ φ); a smaller β ends between the two. With
    T = 1 and f = -log of a posterior density they are its mean and covariance. If p is
    Gaussian and Σ can be its covariance, every β has this fixed point, and updates
    there have no noise: all losses f + T log φ are equal, and so are the weights.

    It replaces the incoming updates by x - x', so it comes first in a chain;
    `optax.sgd(1.0)` behind it makes the whole step. Call `update(updates, state,
    params, value_fn=..., batch=...)` as for `local_entropy`.

    Args:
        sampler: `importance` (local entropy) or `pathwise` (heat). `importance` with a
            `beta_share` finds its β, at most 1/T. `signs_per_draw` defaults to 1:
            sign-flipped copies carry no new information about Σ.
        tau: τ, the initial variance, Σ = τI, in squared units of the parameters.
        key: a typed key, `jax.random.key(seed)`.
        covariance: "scale": one variance for each leaf. "diagonal": one for each
            parameter. "low_rank": a diagonal and a matrix of rank r, O(dr) an update
            beside the draws, by one step of principal factors; it may end at a local
            optimum if narrow directions matter. "full": a matrix, for up to 2048
            parameters; O(d³) an update, and it needs more than d effective samples or
            a small ρ.
        rank: r, of "low_rank".
        beta: β > 0, the inverse temperature of a step, in inverse units of f, or a
            schedule of the number of updates so far. If T > 0 it is at most 1/T, at
            which q = p. With a `beta_share` it is used in the first update only: begin
            low, as few effective samples give a bad start.
        temperature: T ≥ 0, in units of f, or a schedule.
        covariance_rate: ρ, above 0 and at most 1, or a schedule: Σ averages about 1/ρ
            updates. A large ρ with few effective samples makes Σ shrink by noise.
        max_change: c > 1, the largest factor by which a variance in any direction
            changes in an update. x moves by at most √c standard deviations, in the mean
            square over all directions. "low_rank" may take less of a step to hold this.
        widening: s ≥ 1: draw from N(x, s²Σ), with weights that keep q; for `importance`
            without a `beta_share`. Use it if p is curved or has heavier tails than φ,
            so that `info.pareto_k` is above .7: Σ is then too small in spite of many
            effective samples, and a smaller ρ changes nothing. On a curved p of two
            dimensions, J = 1000, deviations are .86 and .63 of the true ones, and 1.00
            and .97 with s = 2 (experiments/benchmarks/curved.py). Effective samples
            fall by a factor of about s^d/(2 - 1/s²)^{d/2}.
        bounds: the least and the greatest variance in any direction, by default τ/10¹⁰
            and 10¹⁰τ. `state.bounded` is the share of directions at a bound.
        mask: the leaves to perturb, as in `local_entropy`.
        has_aux: whether `value_fn` returns a pair, as in `local_entropy`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `GaussianState`. If nothing
        can be estimated, x and Σ stay. In its info `objective` is
        -(1/β) log E_φ exp(-β(f + T log φ)), which is -T log ∫ exp(-f/T) at β = 1/T;
        with `pathwise` it is E_φ[f + T log φ], which is above that. `tau_used` is the
        mean variance of the draws, and `squared_error` is in units of Σ.
        `signal_standard_error` is NaN if Σ keeps more than 2¹⁸ numbers.

    Raises:
        ValueError: `tau` or `beta` is not positive; `temperature` is negative or above
            1/β; `covariance_rate` is not above 0 and at most 1; `widening` is below 1,
            or above 1 for a sampler without weights by β; `max_change` is not above 1;
            `bounds` are not two positive numbers around τ; `covariance` is not one of
            the four, or "full" for more than 2048 parameters; `rank` is not a positive
            integer, or above the number of parameters; `sampler` is neither
            `importance` without `shaping` nor `pathwise`; and the errors of
            `local_entropy`.
        TypeError: as `local_entropy`.

    Examples:
        The posterior of two numbers, from a prior N(0, I) and an observation y = 1 of
        their sum with variance ¼; the mean of each is 4/9. The loss is only evaluated:

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
            "sampler must be one from which gaussian can learn a covariance, got "
            f"{sampler.name}; pass lejax.importance(...) without shaping, or "
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
            f"widening={widening!r} needs importance weights with the β of beta=, got "
            f"{sampler!r}; pass importance without a beta_share, or leave out widening."
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
