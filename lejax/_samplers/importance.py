"""Importance sampling of the local entropy: Algorithm 4, without gradients."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.draws import Draws, combine
from lejax._estimators.effective_sample_size import beta_for_share
from lejax._estimators.fitness_shaping import Shaping, check_shaping, shaped
from lejax._estimators.losses import losses_of, losses_with_credit
from lejax._estimators.noise import Noise, noise_of_groups, noise_of_units
from lejax._estimators.plan import Plan, default_signs, make_units
from lejax._estimators.units import Units
from lejax._estimators.weights import (
    Weights,
    average,
    credit_factor,
    importance_weights,
    pareto_shape,
    told_error,
)
from lejax._info import Info, make_info, unknown
from lejax._internal.blocks import Blocks
from lejax._internal.checks import counts_of, fraction
from lejax._internal.mesh_axes import mean_over
from lejax._internal.trees import all_finite, compute_dtype, inner, is_large, scaled
from lejax._internal.types import PyTree, Scalar
from lejax._samplers.sampler import Estimate, Given, ReducedSampler, Traits
from lejax._spaces.reduced import reduced_space
from lejax._spaces.space import Space, null_space_noise
from lejax._tracing.loss import Loss

# Sums for a covariance of more numbers are not kept by groups of draws.
GROUPED_PRODUCTS = 2**18


class AdaptedState(NamedTuple):
    """The state of `importance` with a `beta_share`.

    Attributes:
        next_beta: the β of the next update; 0 before the first.
    """

    next_beta: jax.Array


@dataclasses.dataclass(frozen=True, repr=False)
class importance(ReducedSampler):
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
        beta_share: the ESS/J that is wanted, between 0 and 1; β is then that of
            `beta_for_share` on the losses of the update before, and the `beta` that is
            passed that of the first update. It costs no evaluation; as β is known
            before the draws, they estimate what they did. Where nothing is learnt, as
            every loss failed or all are equal, β stays.
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
            as `signal_standard_error` is NaN. There is no credit by example.

    Returns:
        A `Sampler` for `local_entropy`. Its info tells the β that was used, and
        estimates every other field, from two units on. The noise it does not know where
        credit by example meets `data_axis_name`, as members do not know each other's
        examples, or more than 2²² numbers in a draw, for want of memory; without credit
        but `signal_standard_error` is missing there.

    Raises:
        ValueError: `num_samples`, `chunk_size` or `signs_per_draw` is not a positive
            integer, `signs_per_draw` is above 32, `beta_share` is not between 0 and 1,
            `shaping` is another word or meets `credit=True` or a `beta_share`, an axis
            is not bound, or both are the same.

    Examples:
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

    num_samples: int
    _: dataclasses.KW_ONLY
    chunk_size: int | None = None
    antithetic: bool = True
    signs_per_draw: int | None = None
    sample_complement: bool = False
    credit: bool | None = None
    beta_share: Scalar | None = None
    shaping: Shaping | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        counts_of(self, num_samples=1, chunk_size=1, signs_per_draw=1)
        if self.beta_share is not None:
            fraction("beta_share", self.beta_share)
        check_shaping(self.shaping, self.credit, self.beta_share)

    @property
    def traits(self) -> Traits:
        """What it can do, and what it needs."""
        follows = self.beta_share is not None or self.shaping is not None
        return Traits(
            "local entropy",
            tells_noise=True,
            values_suffice=True,
            # Ranks of f + T log φ would never become equal.
            learns_covariance=self.shaping is None,
            weighs_by_beta=self.beta_share is None,
            # What follows the share itself does not tell it to others; that of shaped
            # losses does not depend on τ.
            weighted_samples=None if follows else self.num_samples,
        )

    def first_state(self, params: PyTree) -> PyTree:
        """The β to come."""
        if self.beta_share is None:
            return ()
        return AdaptedState(jnp.zeros((), compute_dtype(params)))

    def beta_in_use(self, state: PyTree, beta: jax.Array) -> jax.Array:
        """The β that the last update found; before the first the one that is passed."""
        if self.beta_share is None:
            return beta
        found = state.next_beta.astype(beta.dtype)
        return jnp.where(found > 0, found, beta)

    @property
    def may_share(self) -> bool:
        """Whether draws may share their numbers: the paper's are independent."""
        return self.antithetic and not self.sample_complement

    def space(self, loss: Loss, params: PyTree) -> Space:
        """The directions that the loss sees, and credit by example."""
        credit = self.credit
        if credit is None:
            credit = self.may_share and self.shaping is None
        return reduced_space(
            loss,
            params,
            self.data_axis_name,
            reduction=self.reduction,
            credit=credit,
        )

    def in_space(self, given: Given) -> Estimate:
        """Losses, weights, and the sum of the draws times these weights."""
        space, learns, beta = given.space, given.learns, given.beta
        draws = self.draws(given)
        units, control = draws.units, space.control_variate
        found = losses_of(draws) if control is None else losses_with_credit(draws)
        values = [value if control is None else value[0] for value in found.values]
        losses = units.all_of(values)
        weights = importance_weights(
            shaped(self.shaping, units.filled(losses)) if self.shaping else losses,
            units,
            beta,
        )
        centred = learns is not None or (control is not None and not self.antithetic)
        by_units = control is None and not is_large(space.zeros)
        grouped = self.grouped(space, learns)
        credit = begin = None
        if control is not None:
            summed = units.all_of([value[1] for value in found.values])
            factor = credit_factor(weights, summed, units, centred=centred)
            sums = jax.vmap(control.as_blocks)(found.sums)
            credit = weighed(mean_over(sums, self.data_axis_name), factor)
            if not grouped:  # large, so that there is no room for it beside
                begin = jax.tree.map(lambda block: block.sum(0), credit)
        combined = combine(
            draws,
            found.noise,
            weights.centred(units) if centred else weights.shares,
            weights.shares if by_units else None,
            learns,
            begin,
        )
        groups = combined.groups
        if credit is not None and grouped:
            groups = optax.tree.add(groups, credit)
        total = jax.tree.map(lambda block: block.sum(0), groups)
        combined = combined._replace(groups=())
        if self.axis_name is not None:
            total, combined = jax.lax.psum((total, combined), self.axis_name)
        noise = Noise(*2 * (unknown(losses.dtype),))
        if grouped:
            noise = noise_of_groups(groups, total, weights.shares, units)
        if control is None:
            square = noise_of_units(combined, total, weights.shares, units)
            noise = noise._replace(square=square)
        info = self.info(weights, losses, units, noise, control is not None)
        state = given.state
        if self.beta_share is not None:
            beta = beta_for_share(units.filled(losses), self.beta_share, default=beta)
            state = AdaptedState(beta.astype(state.next_beta.dtype))
        beside = None
        if self.sample_complement and space.to_null_space is not None:
            # Of one draw in what the loss does not see: the same weights as elsewhere.
            squares = jnp.square(units.signed(weights.shares)).sum()
            key = jax.random.fold_in(given.key, self.num_samples)
            scale = jnp.sqrt(given.tau * squares)
            beside = scaled(null_space_noise(key, space), scale)
            square = info.squared_error + inner(beside, beside, losses.dtype)
            info = info._replace(squared_error=square)
        return Estimate(total, state, info, beside, combined.products)

    def draws(self, given: Given) -> Draws:
        """The plan of the update."""
        space, learns = given.space, given.learns
        signs = self.signs_per_draw
        if signs is None:
            # Under other signs the squares are the same, which a covariance sees.
            may_share = self.may_share and learns is None
            signs = (
                default_signs(space.zeros, self.num_samples // 2) if may_share else 1
            )
        units = make_units(
            Plan(self.num_samples, self.antithetic, self.chunk_size, signs),
            space.zeros,
            self.axis_name,
            groups=self.grouped(space, learns),
            exact=space.exact,
        )
        return Draws(given.key, space, jnp.sqrt(given.tau), units)

    def grouped(self, space: Space, learns: Any) -> bool:
        """Whether sums are kept by groups: large ones would be there at once."""
        if learns is not None:
            one = jax.tree.map(lambda leaf: leaf[None], space.tree(space.zeros))
            shapes = jax.eval_shape(
                learns, one, one, jnp.zeros(1, compute_dtype(space.zeros))
            )
            if sum(leaf.size for leaf in jax.tree.leaves(shapes)) > GROUPED_PRODUCTS:
                return False
        parts = space.control_variate is not None and self.data_axis_name is not None
        return not is_large(space.zeros) and not parts

    def info(
        self,
        weights: Weights,
        losses: jax.Array,
        units: Units,
        noise: Noise,
        at_x: bool,
    ) -> Info:
        """What the weights tell."""
        dtype = losses.dtype
        shape = pareto_shape(weights.shares, units)
        info = make_info(
            dtype,
            self.num_samples + at_x,
            objective=weights.free_energy,
            standard_error=told_error(weights, shape),
            effective_sample_size=weights.effective_sample_size,
            nonfinite_fraction=weights.failed_fraction,
            squared_error=noise.square,
            signal_standard_error=noise.norm_error,
            pareto_k=shape,
        )
        if self.shaping is None:
            return info
        of_losses = average(losses, units)
        return info._replace(
            objective=of_losses.objective,
            standard_error=of_losses.standard_error,
            signal_standard_error=unknown(dtype),
        )


def weighed(sums: Blocks, factor: jax.Array) -> Blocks:
    """The control variate's sums times a factor; 0 where they are not finite."""
    kept = all_finite(sums)
    return jax.tree.map(
        lambda block: jnp.where(kept, block * factor.astype(block.dtype), 0), sums
    )
