"""Importance sampling of the local entropy: Algorithm 4, without gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from lejax._estimators import accumulator as _accumulator
from lejax._estimators.draws import (
    Draws,
    Plan,
    default_signs,
    fold_draws,
    own_evaluations,
)
from lejax._estimators.effective_sample_size import (
    adapted,
    beta_in_use,
    keeping,
    no_beta,
    nothing_kept,
)
from lejax._estimators.fitness_shaping import Shaping, check_shaping, shaped_losses
from lejax._estimators.moments import mean_info
from lejax._estimators.weights import estimate, noise_of_groups
from lejax._info import TRUSTED_SAMPLE_SIZE, Info, make_info, unknown
from lejax._internal.checks import fraction, optional_count, positive_count, sign_count
from lejax._internal.mesh_axes import gathered, make_axes, mean_over
from lejax._internal.trees import all_finite, compute_dtype, inner, is_large, scaled
from lejax._internal.types import PyTree, Scalar
from lejax._samplers.sampler import Sampler, as_passed, make_sampler, stateless
from lejax._spaces.control_variate import add_control_variate, sums_by_leaf, zero_sums
from lejax._spaces.reduced import space_maker
from lejax._spaces.space import Space, null_space_noise

# Sums for a covariance of more numbers are not kept by groups of draws.
GROUPED_PRODUCTS = 2**18


def importance(
    num_samples: int,
    *,
    chunk_size: int | None = None,
    antithetic: bool = True,
    axis_name: str | None = None,
    data_axis_name: str | None = None,
    signs_per_draw: int | None = None,
    reduction: bool = True,
    sample_complement: bool = False,
    credit: bool | None = None,
    target_share: Scalar | None = None,
    shaping: Shaping | None = None,
) -> Sampler:
    """Importance sampling of E_q[X]: gradient-free, parallel (Algorithm 4).

    With φ = N(x, τI) and weights w = exp(-βf),

        δ̂ = Σ_j w(X_j) (X_j - x) / Σ_j w(X_j),   X_j ~ φ,

    estimates the displacement E_q[X] - x = -βτ ∇F_{τ,β}(x). The loss is evaluated only,
    never differentiated; it may be discontinuous, integer-valued, or a
    `jax.pure_callback`. A sample whose loss is NaN or +inf has weight 0 and is counted.

    Args:
        num_samples: J ≥ 1, the evaluations of the loss in one update. An antithetic
            pair is two; an odd one out is unpaired.
        chunk_size: how many evaluations run at once under `vmap`, a pair at the least;
            memory grows with it, never with J. By default as many as the cache holds;
            it changes nothing but speed and rounding. A `jax.vmap` around, over seeds
            say, runs as many chunks at once: on a CPU `jax.lax.map` is the faster loop.
        antithetic: draw pairs x ± √τ ε. Less noise per normal drawn, always; False is
            the paper's plain sampling.
        axis_name: the bound axis whose members share the J samples; see `Sampler`.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        signs_per_draw: how many samples at most, or pairs, share one draw under random
            signs, between 1 and 32. Each is exactly Gaussian, any two are uncorrelated,
            and normals are saved; in d dimensions it adds about 2 signs/d to the
            relative variance of δ̂; F̂ may gain less from samples that share, as its
            standard error tells. By default min(10, d/100, J/60, 2²²/d) for pairs, and
            1 for plain sampling and with `sample_complement`.
        reduction: draw in the directions alone that the loss can see on its batch,
            where `reduction_report` finds them: exact, with less noise, and faster.
        sample_complement: with `reduction`, add the noise of the other directions, of
            mean 0, from its exact law: δ̂ then has the law of plain full-space sampling.
        credit: use credit by example, a control variate of mean zero, for the layers of
            which `reduction_report` says so: where f = Σᵢ sᵢ over the examples of the
            batch and sᵢ sees the noise ε of a dense layer in hᵢᵀε alone,

                δ̂ + (κβ/J) √τ Σ_j Σᵢ (sᵢ(X_j) - sᵢ(x)) (ε_j - hᵢ hᵢᵀε_j / |hᵢ|²)

            (of several rows hᵢ, positions, the projection on what they span) has the
            same mean, but for κ's being fitted on the same draws, O(1/J), and less
            noise: most where weights are near each other (β of 1 and below, f a mean).
            It takes one evaluation more, at x. By default with pairs, unless
            `sample_complement` asks for the noise of plain sampling. Plain draws that
            are to have it get centred weights, w_j/Σw - 1/J, of the same mean as well.
        target_share: the ESS/J that is wanted, between 0 and 1; β is then that of
            `beta_for_share` on the losses of the update before, kept for this, and the
            `beta` that is passed that of the first update. It costs no evaluation; as β
            is known before the draws, they estimate what they did. Where nothing is
            learnt, as every loss failed or all are equal, β stays.
        shaping: "ranks" puts the rank of a loss among the J of the update in its place,
            from -½ to ½, equal ones sharing theirs; "standardized" (f - mean)/deviation
            over the J. As in evolution strategies the scale of f is then of no account,
            nor its outliers by ranks, and β is in the inverse units of the shaped loss:
            "ranks" with β = 4 gives the best sample e⁴ times the weight of the worst. A
            loss of -inf counts as failed here.
            It is a surrogate, no local entropy of f: with ranks that of a loss which
            changes with x, standardised that at β/deviation, known after the draws. The
            info's `objective` is then F^H, the mean of the losses as they are,
            `squared_error` takes the shaping as given, and no `certificate` is given,
            as `signal_error` is NaN. Draws are made twice, losses evaluated once and
            kept, J numbers; there is no credit by example.

    Returns:
        A `Sampler` for `local_entropy`. Its info tells the β that was used, and
        estimates every other field, from two units on. The noise it does not know where
        credit by example meets `data_axis_name`, as members do not know each other's
        examples, or more than 2²² numbers in a draw, for want of memory; without credit
        but `signal_error` is missing there.

    Raises:
        ValueError: `num_samples`, `chunk_size` or `signs_per_draw` is not a positive
            integer, `signs_per_draw` is above 32, `target_share` is not between 0 and
            1, `shaping` is another word or meets `credit=True` or a `target_share`, an
            axis is not bound, or both are the same.

    Example:
        The step on f(x) = x²/2 is -τ/(1 + τ) x, here -1/3 of x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.importance(10_000)
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, sampler, tau=0.5)
        >>> print(f"{step(jnp.array(3.0), jax.random.key(0)):.1f}")
        2.0

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, *Variational characterizations of local
        entropy and heat regularization in deep learning*, section 5.1.2, Algorithm 4.
    """
    num_samples = positive_count("num_samples", num_samples)
    chunk_size = optional_count("chunk_size", chunk_size)
    signs_per_draw = sign_count(signs_per_draw)
    adapts = target_share is not None
    if adapts:
        fraction("target_share", target_share)
    # The paper's samples are independent.
    may_share = antithetic and not sample_complement
    check_shaping(shaping, credit, target_share)
    if credit is None:
        credit = may_share and shaping is None

    def run(
        key: jax.Array,
        state: PyTree,
        space: Space,
        tau: jax.Array,
        beta: jax.Array,
    ) -> tuple[PyTree, PyTree, Info]:
        dtype = compute_dtype(space.zeros)
        shared = signs_per_draw or (
            default_signs(space.zeros, num_samples // 2)
            # Under other signs the squares are the same, which a covariance sees.
            if may_share and space.products is None
            else 1
        )

        plan = Plan(num_samples, antithetic, chunk_size, shared)
        by_example = space.control_variate
        shaped = (
            None if shaping is None else shaped_losses(shaping, key, space, tau, plan)
        )

        def evaluate(displacement: PyTree, sign: float, number: jax.Array) -> PyTree:
            if shaped is not None:
                return jnp.zeros((), dtype)  # all are known
            if by_example is None:
                return _accumulator.log_weights(
                    space.value_fn(displacement, number, sign=sign), beta
                )
            value, seen = by_example.examine(displacement, sign=sign)
            return _accumulator.log_weights(value, beta), seen

        def absorb(
            total: _accumulator.WeightedAccumulator, draws: Draws
        ) -> _accumulator.WeightedAccumulator:
            if shaped is not None:
                known = _accumulator.log_weights(shaped.losses[draws.numbers], beta)
                draws = draws._replace(outputs=known)
            if by_example is None:
                found = _accumulator.summarise(draws, space.products)
                return _accumulator.merge(total, found)
            weights, seen = draws.outputs
            at_origin = mean_over(by_example.baselines.sum(), by_example.data_axis_name)
            # Nothing beside the sum: a constant would hide the losses from the fit.
            losses = mean_over(seen.losses.sum(-1), by_example.data_axis_name)
            found = _accumulator.with_losses(
                draws._replace(outputs=weights),
                losses - at_origin,
                centred=not antithetic,
            )
            credit = add_control_variate(
                by_example,
                total.credit,
                draws.displacements,
                draws.signs,
                draws.valid,
                seen,
            )
            total = _accumulator.merge(total._replace(credit=None), found)
            return total._replace(credit=credit)

        empty = _accumulator.empty(space.zeros, dtype, space.products)
        if by_example is not None:
            sums = zero_sums(by_example, common=True)
            empty = _accumulator.empty_with_credit(empty, sums, centred=not antithetic)
        # Of groups, large sums would be there at once, and many be sent.
        whole = is_large(space.zeros) or (
            by_example is not None and by_example.data_axis_name is not None
        )
        if space.products is not None:
            whole = whole or optax.tree.size(empty.products) > GROUPED_PRODUCTS
        fold, initial = absorb, empty
        if adapts:
            fold = keeping(absorb, lambda of: of if by_example is None else of[0])
            room = own_evaluations(plan, space.axis_name, of_groups=not whole)
            initial = nothing_kept(empty, room, dtype)
        folded = fold_draws(
            key, space, tau, evaluate, fold, initial, plan, groups=not whole
        )
        if adapts:
            logs = gathered(folded.log_weights, space.axis_name)
            state, folded = adapted(state, logs, beta, target_share), folded.total
        if by_example is not None:
            lift = functools.partial(sums_by_leaf, by_example)
            sums = (lift if whole else jax.vmap(lift))(folded.credit)
            sums = mean_over(sums, by_example.data_axis_name)
            folded = folded._replace(credit=sums)
        groups = None if whole else folded
        total = folded if whole else _accumulator.merge_groups(folded)
        if space.axis_name is not None:
            total = _accumulator.agreed(total, space.axis_name)
        elif by_example is not None:
            total = _accumulator.with_credit(total, all_finite(total.credit))
        noise = None if groups is None else noise_of_groups(total, groups)
        if space.axis_name is not None:
            total, noise = _accumulator.summed(total, noise, space.axis_name)
        found = estimate(total, noise)
        info = make_info(
            dtype,
            num_samples + (by_example is not None),
            objective=-found.log_mean / beta,
            standard_error=jnp.where(
                found.effective_sample_size < TRUSTED_SAMPLE_SIZE,
                unknown(dtype),
                found.log_mean_error / beta,
            ),
            effective_sample_size=found.effective_sample_size,
            nonfinite_fraction=found.failed_fraction,
            squared_error=found.squared_error,
            norm_error=found.norm_error,
        )._replace(products=found.excess)
        if shaped is not None:
            of_losses = mean_info(shaped.moments, num_samples)
            info = info._replace(
                objective=of_losses.objective,
                standard_error=of_losses.standard_error,
                signal_error=of_losses.signal_error,  # which nobody knows
            )
        displacement = space.lift(found.displacement)
        if sample_complement and space.to_null_space is not None:
            noise = null_space_noise(jax.random.fold_in(key, num_samples), space)
            noise = scaled(noise, jnp.sqrt(tau * found.squared_weights))
            displacement = optax.tree.add(displacement, noise)
            error = info.squared_error + inner(noise, noise, dtype)
            info = info._replace(squared_error=error)
        return displacement, state, info

    return make_sampler(
        run,
        "importance",
        "local entropy",
        space_maker=space_maker(reduction, credit),
        knows_noise=True,
        axes=make_axes(axis_name, data_axis_name),
        init=no_beta if adapts else stateless,
        # What follows the share itself does not tell it to others; that of shaped
        # losses does not depend on τ.
        num_samples=None if adapts or shaping else num_samples,
        beta_in_use=beta_in_use if adapts else as_passed,
        # Ranks of f + T log φ would never become equal.
        learns=shaping is None,
        numbers=True,
    )
