"""The gradient of the heat-regularised loss as an average of gradients."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.draws import Draws, Plan, fold_draws
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
from lejax._estimators.second_moments import no_products, slopes
from lejax._info import Info
from lejax._internal.checks import optional_count, positive_count
from lejax._internal.mesh_axes import make_axes
from lejax._internal.trees import all_finite, compute_dtype, inner, scaled
from lejax._internal.types import PyTree, Scalar
from lejax._samplers.sampler import Sampler, make_sampler
from lejax._spaces.reduced import space_maker
from lejax._spaces.space import Products, Space


class MeanGradient(NamedTuple):
    """Moments of the losses, and the sum of their gradients.

    Attributes:
        moments: of the losses whose gradient is finite as well.
        total: Σ∇f.
        square: Σ|uᵤ|² over the units, each of which adds uᵤ to that sum.
        products: Σu∇fᵀ, as far as a covariance is to learn from it; else None.
        offset: Σu of the draws that count, likewise.
    """

    moments: LossMoments
    total: PyTree
    square: jax.Array
    products: PyTree = None
    offset: PyTree = None

    def mean(self) -> PyTree:
        """The average of the finite gradients; 0 where there are none."""
        size = jnp.maximum(self.moments.size, 1).astype(self.moments.mean.dtype)
        return scaled(self.total, 1 / size)

    def curvature(self, products: Products) -> PyTree:
        """The covariance of u and ∇f over the draws that count, as `products` has it.

        Where some failed, u has a mean, which says nothing about ∇²f.
        """
        size = jnp.maximum(self.moments.size, 1).astype(self.moments.mean.dtype)
        one, other = (
            jax.tree.map(lambda leaf: leaf[None], tree)
            for tree in (self.offset, self.total)
        )
        of_means = products(one, other, 1 / size[None])
        return scaled(optax.tree.sub(self.products, of_means), 1 / size)

    def squared_error(self, factor: jax.Array) -> jax.Array:
        """The noise in that average times a factor, by independent units."""
        dtype, mean = self.square.dtype, self.mean()
        size = jnp.maximum(self.moments.size, 1).astype(dtype)
        shares = self.moments.size_square.astype(dtype) / size**2
        square, total = self.square / size**2, inner(mean, mean, dtype)
        return noise_of_sum(factor**2 * square, factor**2 * total, shares)


def mean_gradient(
    key: jax.Array,
    space: Space,
    centre: PyTree,
    variance: Scalar,
    plan: Plan,
) -> MeanGradient:
    """Average ∇f over N(centre, variance), leaving out draws that are not finite."""
    dtype = compute_dtype(space.zeros)

    def evaluate(
        displacement: PyTree, sign: float, number: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        del number
        return space.value_and_grad(optax.tree.add_scale(centre, sign, displacement))

    def absorb(found: MeanGradient, draws: Draws) -> MeanGradient:
        values, grads = draws.outputs
        finite = jax.vmap(jax.vmap(jax.vmap(all_finite)))((values, grads))
        kept = finite & draws.valid

        def of_units(leaf: jax.Array) -> jax.Array:
            mask = kept.reshape(kept.shape + (1,) * (leaf.ndim - 3))
            return jnp.where(mask, leaf, 0).sum((0, 2))

        moments = loss_moments(values, kept, draws.valid)
        units = jax.tree.map(of_units, grads)
        products, offset = found.products, found.offset
        if space.products is not None:
            more = slopes(space.products, draws, kept, grads)
            products = optax.tree.add(products, more)
            offset = optax.tree.add(offset, draws.moment(kept.astype(dtype)))
        total = jax.tree.map(lambda leaf: leaf.sum(0), units)
        return MeanGradient(
            merge_moments(found.moments, moments),
            optax.tree.add(found.total, total),
            found.square + inner(units, units, dtype),
            products,
            offset,
        )

    nothing = no_products(space.products, space.zeros)
    found = fold_draws(
        key,
        space,
        variance,
        evaluate,
        absorb,
        MeanGradient(
            empty_moments(dtype),
            space.zeros,
            jnp.zeros((), dtype),
            nothing,
            None if nothing is None else space.zeros,
        ),
        plan,
    )
    if space.axis_name is None:
        return found
    moments = pooled(of_members(found.moments, space.axis_name))
    sums = jax.lax.psum(found[1:], space.axis_name)
    return MeanGradient(moments, *sums)


def pathwise(
    num_samples: int,
    *,
    chunk_size: int | None = None,
    antithetic: bool = True,
    axis_name: str | None = None,
    data_axis_name: str | None = None,
    reduction: bool = True,
) -> Sampler:
    """The gradient of the heat-regularised loss as an average of gradients.

        ∇F^H_τ(x) = E_φ ∇f(X) ≈ (1/J) Σ_j ∇f(X_j),   X_j ~ φ = N(x, τI).

    The displacement is -τ times that: one explicit gradient step, where Algorithm 2
    takes an implicit one. A draw whose loss or gradient is not finite is left out and
    counted: the average is then conditional on finite draws.

    Args:
        num_samples: J ≥ 1, the evaluations of ∇f in one update; a pair is two.
        chunk_size: how many run at once under `vmap`; memory grows with it, not with J.
        antithetic: draw pairs x ± √τ ε, which cancel the part of ∇f that is odd in ε.
        axis_name: the bound axis whose members share the J samples; see `Sampler`.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        reduction: draw in the directions alone that the loss can see on its batch,
            where `reduction_report` finds them: exact, and faster.

    Returns:
        A `Sampler` for `heat`. Its info's `effective_sample_size` is the number of
        draws that count.

    Raises:
        ValueError: `num_samples` or `chunk_size` is not a positive integer, or
            an axis is not bound, or both are the same.
        TypeError: `value_fn` returns integers, which have no gradient.

    Example:
        On f(x) = x²/2 the step is -τ x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, lejax.pathwise(2), tau=0.5)
        >>> print(step(jnp.array(3.0), jax.random.key(0)))
        1.5

    References:
        Kingma, Welling, *Auto-encoding variational Bayes* (the pathwise derivative);
        Garcia Trillos, Kaplan, Sanz-Alonso, end of section 5.2.
    """
    plan = Plan(
        positive_count("num_samples", num_samples),
        antithetic,
        optional_count("chunk_size", chunk_size),
    )

    def run(
        key: jax.Array,
        state: PyTree,
        space: Space,
        tau: jax.Array,
        beta: jax.Array,
    ) -> tuple[PyTree, PyTree, Info]:
        del beta  # heat has none
        found = mean_gradient(key, space, space.zeros, tau, plan)
        error = found.squared_error(tau)
        info = mean_info(found.moments, num_samples)._replace(squared_error=error)
        if space.products is not None:
            info = info._replace(products=found.curvature(space.products))
        return space.lift(scaled(found.mean(), -tau)), state, info

    return make_sampler(
        run,
        "pathwise",
        "heat",
        space_maker=space_maker(reduction),
        knows_noise=True,
        axes=make_axes(axis_name, data_axis_name),
        differentiable=True,
        learns=True,
    )
