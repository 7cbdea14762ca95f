"""Importance sampling for local entropy, without gradients: Algorithm 4."""

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

# Above this many numbers, sums for a covariance are not kept by group of draws.
GROUPED_PRODUCTS = 2**18


class AdaptedState(NamedTuple):
    """The state of `importance` with a `beta_share`.

    Attributes:
        next_beta: the β of the next update; 0 before the first.
    """

    next_beta: jax.Array


@dataclasses.dataclass(frozen=True, repr=False)
class importance(ReducedSampler):
    """Importance sampling for local entropy, from loss values only (Algorithm 4).

    It estimates the displacement E_q[X] - x, and so the gradient of the local entropy.
    Use it if the loss has no useful gradient: an error count, a spiking or quantised
    network, a simulator behind `jax.pure_callback`. Do not use it if gradients are
    cheap (see `pathwise` and `sgld`). The weighted mean of perturbations is the update
    of MPPI in control. OpenES, here `score_function`, weights them by the losses.

    With φ = N(x, τI), q ∝ exp(-βf) φ and weights w = exp(-βf),

        δ̂ = Σ_j w(X_j) (X_j - x) / Σ_j w(X_j),   X_j ~ φ,

    estimates E_q[X] - x = -βτ ∇F_{τ,β}(x). A sample whose loss is NaN or +inf has
    weight 0 and is counted in `info.nonfinite_fraction`.

    Args:
        num_samples: J ≥ 2, the evaluations of the loss in one update. An antithetic
            pair counts as two. If J is odd, one sample has no partner.
        chunk_size: how many evaluations run at once under `vmap`, at least a pair. It
            affects speed, memory and rounding only. The default suits the device. On a
            CPU, loop over seeds by `jax.lax.map`: `jax.vmap` multiplies the chunk.
        antithetic: draw pairs x ± √τ ε, which have less noise for each random number.
            False is plain sampling, as in the paper.
        axis_name: the bound axis whose members share the J samples; see `Sampler`.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        signs_per_draw: the most samples, or pairs, that share one draw under random
            signs, from 1 to 32. This saves random numbers. Each sample is exactly
            Gaussian, and the noise of two pairs is uncorrelated. In d dimensions it
            adds about 2 signs/d to the relative variance of δ̂. The default is
            min(10, d/100, J/60, 2²²/d) for pairs, and 1 for plain sampling,
            `sample_complement` and `gaussian`.
        reduction: draw only in the directions that the loss depends on for its batch,
            as listed by `reduction_report`. This is exact, faster and less noisy.
        sample_complement: with `reduction`, add the noise of the other directions, of
            mean 0, from its exact law. δ̂ then has the law of sampling in full space.
        credit: use credit by example, a control variate of mean zero, in the layers
            listed by `reduction_report`. It reduces the noise, most at β ≤ 1 with f a
            mean over the batch, and costs one evaluation, at x. Its factor is fitted to
            the same draws, which shifts the mean by O(1/J). The default is True for
            pairs without `sample_complement` or `shaping`. With `antithetic=False` it
            also centres the weights, w_j/Σw - 1/J.
        beta_share: the wanted ESS/J, between 0 and 1. β is then adapted: an update uses
            `beta_for_share` of the losses of the previous update, and the first update
            uses `beta`. It costs no evaluation. β is fixed before the draws, so it adds
            no bias. If all losses are equal or failed, β does not change.
        shaping: a transformation of the J losses of an update, as in evolution
            strategies. "ranks" replaces a loss by its centred rank, from -½ to ½, with
            a mean rank for ties. "standardized" is (f - mean)/deviation. The scale of f
            no longer matters, nor do outliers with "ranks". β is in inverse units of
            the shaped loss: "ranks" with β = 4 gives the best sample e⁴ times the
            weight of the worst. A loss of -inf counts as failed.
            This optimises a surrogate. With ranks, the effective loss depends on x.
            `info.objective` is therefore F^H, the mean of the unshaped losses,
            `squared_error` takes the shaping as given, and `certificate` gives no
            guarantee. Credit by example is off.

    Returns:
        A `Sampler` for `local_entropy`. Its info has every field if the draws form at
        least two independent units; samples that share a draw are one unit.
        `squared_error` and `signal` are NaN if credit by example is combined with
        `data_axis_name`, or with draws of more than 2²² entries. Without credit, such
        draws lack only `signal_standard_error`.

    Raises:
        ValueError: `num_samples` is not an integer of at least 2, `chunk_size` or
            `signs_per_draw` is not a positive integer, `signs_per_draw` is above 32,
            `beta_share` is not between 0 and 1, `shaping` is unknown or combined with
            `credit=True` or `beta_share`, an axis is not bound, or both axes are equal.

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
        counts_of(self, num_samples=2, chunk_size=1, signs_per_draw=1)
        if self.beta_share is not None:
            fraction("beta_share", self.beta_share)
        check_shaping(self.shaping, self.credit, self.beta_share)

    @property
    def traits(self) -> Traits:
        """Its capabilities and requirements."""
        follows = self.beta_share is not None or self.shaping is not None
        return Traits(
            "local entropy",
            tells_noise=True,
            values_suffice=True,
            # No fixed point: the ranks of f + T log φ would never become equal.
            learns_covariance=self.shaping is None,
            weighs_by_beta=self.beta_share is None,
            # None disables control of τ: an adaptive β already fixes the effective
            # sample size, and that of shaped losses does not depend on τ.
            weighted_samples=None if follows else self.num_samples,
        )

    def first_state(self, params: PyTree) -> PyTree:
        """The adapted β; 0 until it is known."""
        if self.beta_share is None:
            return ()
        return AdaptedState(jnp.zeros((), compute_dtype(params)))

    def beta_in_use(self, state: PyTree, beta: jax.Array) -> jax.Array:
        """The β found by the last update; before the first, the β that is passed."""
        if self.beta_share is None:
            return beta
        found = state.next_beta.astype(beta.dtype)
        return jnp.where(found > 0, found, beta)

    @property
    def may_share(self) -> bool:
        """True if samples may share a draw; those of the paper are independent."""
        return self.antithetic and not self.sample_complement

    def space(self, loss: Loss, params: PyTree) -> Space:
        """The reduced space, with credit by example if it applies."""
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
        """The losses, their weights, and the weighted sum of the draws."""
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
            if not grouped:  # large: no memory for a second sum
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
            # In the null space, Σ w_j ε_j has the law of one draw times √Σ w_j².
            squares = jnp.square(units.signed(weights.shares)).sum()
            key = jax.random.fold_in(given.key, self.num_samples)
            scale = jnp.sqrt(given.tau * squares)
            beside = scaled(null_space_noise(key, space), scale)
            square = info.squared_error + inner(beside, beside, losses.dtype)
            info = info._replace(squared_error=square)
        return Estimate(total, state, info, beside, combined.products)

    def draws(self, given: Given) -> Draws:
        """The draws of the update, still to be made."""
        space, learns = given.space, given.learns
        signs = self.signs_per_draw
        if signs is None:
            # Sign-flipped copies carry no new information about a covariance.
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
        """True if sums are kept by group of draws; large ones take too much memory."""
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
        """The info of an update."""
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
    """The sums of the control variate times a factor; 0 if one is not finite."""
    kept = all_finite(sums)
    return jax.tree.map(
        lambda block: jnp.where(kept, block * factor.astype(block.dtype), 0), sums
    )
