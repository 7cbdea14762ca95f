"""The gradient of the heat-regularised loss from values of the loss alone."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.draws import NUM_GROUPS, Draws, Plan, default_signs, fold_draws
from lejax._estimators.moments import (
    LossMoments,
    empty_moments,
    loss_moments,
    mean_info,
    merge_moments,
    noise_of_sum,
    of_members,
    pooled,
)
from lejax._info import Info
from lejax._internal.checks import optional_count, positive_count, sign_count
from lejax._internal.mesh_axes import make_axes, mean_over, members, varying
from lejax._internal.trees import compute_dtype, gram, inner, scaled
from lejax._internal.types import PyTree
from lejax._samplers.sampler import Sampler, make_sampler
from lejax._spaces.control_variate import squared_norm, sums_by_leaf, zero_sums
from lejax._spaces.per_example_noise import per_example_space, per_example_sums
from lejax._spaces.reduced import space_maker
from lejax._spaces.space import Space


class Covariance(NamedTuple):
    """Moments of the losses, and their co-moment with the displacements.

    Attributes:
        moments: of the finite losses; μ is their mean.
        comoment: Σ(f - μ)(X - x).
        offset: Σ(X - x), which complete pairs cancel.
        unpaired: the number of finite losses without the one of the other sign.
        products: Σ over units of the inner products, each with each, of what they add
            to the co-moment and to the offset.
        credit: for the leaves that the examples see apart, Σ(sᵢ - bᵢ) times what they
            saw; the others are those of the displacements.
        credit_square: Σ|c|² over groups of draws, each of which adds c to that sum.
        group_square: Σ of the squares of the groups' numbers of finite losses.
    """

    moments: LossMoments
    comoment: PyTree
    offset: PyTree
    unpaired: jax.Array
    products: jax.Array
    credit: PyTree = None
    credit_square: jax.Array | None = None
    group_square: jax.Array | None = None


def _covariance(draws: Draws) -> Covariance:
    values = draws.outputs
    kept = jnp.isfinite(values) & draws.valid
    moments = loss_moments(values, kept, draws.valid)
    centred = jnp.where(kept, values - moments.mean, 0)
    ones = kept.astype(values.dtype)
    unpaired = jnp.abs(draws.signed(ones)).sum().astype(jnp.int32)
    units = [draws.unit_moments(centred), draws.unit_moments(ones)]
    comoment, offset = jax.tree.map(lambda leaf: leaf.sum(0), units)
    return Covariance(moments, comoment, offset, unpaired, gram(units, values.dtype))


def _about(mean: jax.Array, c: Covariance) -> tuple[PyTree, jax.Array]:
    """The co-moment, and the inner products, about another mean."""
    shift = c.moments.mean - mean
    turn = jnp.eye(2, dtype=shift.dtype).at[0, 1].set(shift)
    moved = optax.tree.add(c.comoment, scaled(c.offset, shift))
    return moved, turn @ c.products @ turn.T


def _merge(a: Covariance, b: Covariance) -> Covariance:
    moments = merge_moments(a.moments, b.moments)
    comoment, products = jax.tree.map(
        jnp.add, _about(moments.mean, a), _about(moments.mean, b)
    )
    a, b = (c._replace(comoment=None, products=None) for c in (a, b))
    return jax.tree.map(jnp.add, a, b)._replace(
        moments=moments, comoment=comoment, products=products
    )


def _merge_over(c: Covariance, axis_name: str) -> Covariance:
    moments = pooled(of_members(c.moments, axis_name))
    comoment, products = _about(moments.mean, c)
    sums = c._replace(comoment=comoment, products=products)
    return jax.lax.psum(sums, axis_name)._replace(moments=moments)


def _squared_error(c: Covariance, displacement: PyTree, factor: jax.Array) -> jax.Array:
    """The noise in factor times the co-moment, by independent units."""
    dtype = factor.dtype
    size = jnp.maximum(c.moments.size, 1).astype(dtype)
    return noise_of_sum(
        c.products[0, 0] * factor**2,
        inner(displacement, displacement, dtype),
        c.moments.size_square.astype(dtype) / size**2,
    )


def score_function(
    num_samples: int,
    *,
    chunk_size: int | None = None,
    antithetic: bool = True,
    axis_name: str | None = None,
    data_axis_name: str | None = None,
    signs_per_draw: int | None = None,
    reduction: bool = True,
    credit: bool = True,
) -> Sampler:
    """The gradient of the heat-regularised loss without gradients of the loss.

        ∇F^H_τ(x) = E_φ[(f(X) - b)(X - x)] / τ = Cov_φ(f(X), X) / τ,   φ = N(x, τI).

    E_φ[X - x] = 0 is known, so the baseline b = mean f costs no bias: the sample
    covariance, divided by the number of draws less the share of it that unpaired draws
    spend on b, is unbiased for every J. In antithetic pairs the baseline cancels. The
    displacement is -τ∇F^H. A draw whose loss is not finite is left out and counted: the
    estimate is then the gradient of the average over finite draws.

    Args:
        num_samples: J ≥ 2, the evaluations of f in one update; a pair is two.
        chunk_size: how many run at once under `vmap`; memory grows with it, not with J.
        antithetic: draw pairs x ± √τ ε, which cancel the part of f that is even in ε.
        axis_name: the bound axis whose members share the J samples; see `Sampler`.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        signs_per_draw: how many samples at most, or pairs, share one draw under random
            signs, as in `importance`; by default min(10, d/100, J/60, 2²²/d) for pairs,
            with J/30 for single draws.
        reduction: draw in the directions alone that the loss can see on its batch,
            where `reduction_report` finds them: exact, with less noise, and faster.
        credit: draw for every example of the batch apart, in what it sees of the layers
            of which `reduction_report` says that they have credit by example: with
            f = Σᵢ sᵢ and a layer's inputs hᵢ

                yᵢ = hᵢᵀ W + √τ |hᵢ| ξᵢ,
                ∇_W F^H = E Σᵢ (sᵢ - sᵢ(x)) hᵢ ξᵢᵀ / (√τ |hᵢ|),

            exact for F^H, with far less noise, and but forward passes. Other leaves are
            drawn whole, in common: where most numbers are in those, turn it off. What
            sᵢ(x) is from the mean stays in the average where draws fail. It takes one
            evaluation more, at x.

    Returns:
        A `Sampler` for `heat`. Its info's `effective_sample_size` is the number of
        draws that count.

    Raises:
        ValueError: `num_samples` is not an integer of at least 2 (one draw is all spent
            on the baseline), `chunk_size` is not a positive integer, or an axis is
            not bound, or both are the same.

    Example:
        On f(x) = x²/2 the step is -τ x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.score_function(10_000)
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, sampler, tau=0.5)
        >>> print(f"{step(jnp.array(3.0), jax.random.key(0)):.1f}")
        1.5

    References:
        Williams, *Simple statistical gradient-following algorithms for connectionist
        reinforcement learning* (score function and baseline).
    """
    num_samples = positive_count("num_samples", num_samples, least=2)
    chunk_size = optional_count("chunk_size", chunk_size)
    signs_per_draw = sign_count(signs_per_draw)

    def run(
        key: jax.Array,
        state: PyTree,
        space: Space,
        tau: jax.Array,
        beta: jax.Array,
    ) -> tuple[PyTree, PyTree, Info]:
        del beta  # heat has none
        by_example = space.control_variate
        draws = num_samples // 2 if antithetic else num_samples
        examples = 1 if by_example is None else by_example.baselines.size
        shared = signs_per_draw or default_signs(space.zeros, draws, examples)
        none = empty_moments(compute_dtype(space.zeros))
        products = jnp.zeros((2, 2), none.mean.dtype)
        if by_example is None:
            empty = Covariance(none, space.zeros, space.zeros, none.size, products)
        else:
            others = space.zeros[1]
            sums = zero_sums(by_example, common=False)
            square_of_none = varying(none.mean, by_example.data_axis_name)
            empty = Covariance(
                *(none, others, others, none.size, products),
                *(sums, square_of_none, none.mean),
            )

        def evaluate(displacement: PyTree, sign: float, number: jax.Array) -> PyTree:
            if by_example is None:
                return space.value_fn(displacement, number, sign=sign)
            return by_example.examine(displacement, sign=sign)

        def absorb(total: Covariance, draws: Draws) -> Covariance:
            if by_example is None:
                return _merge(total, _covariance(draws))
            (values, seen), (noises, others) = draws.outputs, draws.displacements
            kept = jnp.isfinite(values) & draws.valid
            losses = jnp.where(kept[..., None], seen.losses - by_example.baselines, 0)
            sums = per_example_sums(by_example, noises, draws.signs, losses, seen.bases)
            found = _covariance(draws._replace(outputs=values, displacements=others))
            return _merge(
                total,
                found._replace(
                    credit=sums,
                    credit_square=squared_norm(by_example, sums, values.dtype),
                    group_square=jnp.square(found.moments.size.astype(values.dtype)),
                ),
            )

        found = fold_draws(
            key,
            space,
            tau,
            evaluate,
            absorb,
            empty,
            Plan(
                num_samples,
                antithetic,
                chunk_size,
                shared,
                1 if by_example is None else NUM_GROUPS,
            ),
        )
        if by_example is not None:
            sums = sums_by_leaf(by_example, found.credit)
            found = found._replace(credit=sums)
        if space.axis_name is not None:
            found = _merge_over(found, space.axis_name)
        dtype, size = found.moments.mean.dtype, found.moments.size
        share = found.unpaired.astype(dtype) / jnp.maximum(size, 1).astype(dtype)
        degrees = size.astype(dtype) - share
        factor = jnp.where(degrees > 0, -1 / jnp.where(degrees > 0, degrees, 1), 0)
        info = mean_info(found.moments, num_samples + (by_example is not None))
        displacement = scaled(found.comoment, factor)
        error = _squared_error(found, displacement, factor)
        if by_example is not None:
            assert found.credit_square is not None
            assert found.group_square is not None
            each = -1 / jnp.maximum(size, 1).astype(dtype)
            mine = scaled(found.credit, each)
            of_credit = noise_of_sum(
                found.credit_square * each**2,
                inner(mine, mine, dtype),
                found.group_square * each**2,
            )
            # Other members of a data axis have other examples, with draws of their own.
            data = by_example.data_axis_name
            error = error + mean_over(of_credit, data) / members(data)
            displacement = mean_over(mine, data), displacement
        info = info._replace(squared_error=error)
        return space.lift(displacement), state, info

    return make_sampler(
        run,
        "score_function",
        "heat",
        space_maker=(
            functools.partial(per_example_space, reduction=reduction)
            if credit
            else space_maker(reduction)
        ),
        knows_noise=True,
        numbers=True,
        axes=make_axes(axis_name, data_axis_name),
    )
