"""An update of a Gaussian and its covariance: the settings, the state and the step."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._covariance.covariance import Covariance, Structure, isotropic
from lejax._covariance.update import (
    by_moments,
    by_natural_gradient,
    with_constant,
    within_reach,
)
from lejax._info import Info, make_info
from lejax._internal.checks import SPACINGS
from lejax._internal.random import translate
from lejax._internal.trees import (
    all_finite,
    compute_dtype,
    inner,
    scaled,
    widen,
)
from lejax._internal.types import PyTree
from lejax._samplers.gradient import estimate_gradient
from lejax._samplers.importance import AdaptedState
from lejax._samplers.sampler import Sampler
from lejax._tracing.loss import Loss, OutsideLoss
from lejax._transforms.smoothing import next_step


class GaussianState(NamedTuple):
    """The state of `gaussian`.

    Use `covariance` to draw from N(x, Σ) or to read variances; in a chain it is
    `state[0].covariance`.

    Attributes:
        step: the number of updates so far.
        key: the key that the factory was given; every update folds `step` into it.
        sampler: the state of the sampler.
        covariance: Σ, stored as its root L. `covariance.times(u)` is Lu, so x + Lu with
            u ~ N(0, I) is a draw of N(x, Σ). `covariance.variances(params)` is the
            diagonal of Σ.
        bounded: the larger of two shares: of directions whose variance is at a bound,
            and of parameters whose draws are lost in rounding, because their standard
            deviation is below four spacings of their dtype at x.
        info: the info of the last update; NaN before the first.

    Examples:
        Ten draws of N(x, Σ) before the first update:

        >>> import jax, jax.numpy as jnp, lejax
        >>> tx = lejax.gaussian(lejax.importance(100), 0.25, key=jax.random.key(0))
        >>> x = jnp.array([1.0, 2.0])
        >>> covariance = tx.init(x).covariance
        >>> print(covariance.variances(x))
        [0.25 0.25]
        >>> noise = jax.random.normal(jax.random.key(1), (10, 2))
        >>> draws = x + jax.vmap(covariance.times)(noise)
        >>> print(draws.shape)
        (10, 2)
    """

    step: jax.Array
    key: jax.Array
    sampler: PyTree
    covariance: Covariance
    bounded: jax.Array
    info: Info


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The settings of an update, without the numbers that may change at run time.

    Attributes:
        sampler: the sampler.
        schedules: of β, T, ρ and c; None for those that are numbers.
        covariance: the structure of Σ.
        rank: r.
        tau: the initial variance.
    """

    sampler: Sampler
    schedules: tuple[Any, ...]
    covariance: Structure
    rank: int
    tau: Any = dataclasses.field(compare=False)

    def first_state(self, key: jax.Array, params: PyTree, aux: PyTree) -> GaussianState:
        """The state before the first update."""
        zeros = _coordinates(params)
        dtype = compute_dtype(zeros)
        return GaussianState(
            jnp.zeros((), jnp.int32),
            key,
            self.sampler.init(zeros),
            isotropic(self.covariance, zeros, self.tau, self.rank, key),
            jnp.zeros((), dtype),
            make_info(dtype, 0)._replace(aux=aux),
        )


def gaussian_step(
    settings: Gaussian,
    loss: Loss | OutsideLoss,
    params: PyTree,
    state: GaussianState,
    numbers: tuple[Any, ...],
) -> tuple[PyTree, GaussianState]:
    """The updates and the next state; a number is None if a schedule gives it."""
    sampler, zeros = settings.sampler, _coordinates(params)
    of_entropy = sampler.regularization == "local entropy"
    dtype, root = compute_dtype(zeros), state.covariance
    step, temp, rho, most = (
        jnp.asarray(schedule(state.step) if schedule else number, dtype)
        for schedule, number in zip(settings.schedules, numbers, strict=False)
    )
    temp = jnp.maximum(temp, 0)
    # At β = 1/T q is p itself; a larger β would overshoot it.
    limit = jnp.where(temp > 0, 1 / jnp.where(temp > 0, temp, 1), jnp.inf)
    step = jnp.minimum(step, limit)
    widening = jnp.asarray(numbers[4], dtype)

    def limited(inside: PyTree) -> PyTree:
        if isinstance(inside, AdaptedState):
            return AdaptedState(jnp.minimum(inside.next_beta, limit))
        return inside

    slope = -temp
    if of_entropy:
        # The weights are exp(-βf) φ^{1-βT} over the density of the draws.
        slope = (1 - 1 / widening**2) / step - temp
    moved, inside, info, products = estimate_gradient(
        sampler,
        jax.random.fold_in(state.key, state.step),
        limited(state.sampler),
        zeros,
        _tilted(loss, params, zeros, root, slope, sampler),
        widening**2 if of_entropy else 1.0,
        step if of_entropy else 1.0,
        displacement=True,
        learns=root.products if of_entropy else root.bends,
    )
    how = rho, most, tuple(jnp.asarray(bound, dtype) for bound in numbers[5:])
    if of_entropy:
        moved = scaled(moved, -1)  # it was x - E_q[X]
        # `products` is E_q uuᵀ less the covariance s²I of the draws; make it less I.
        more = scaled(root.unit(), widening**2 - 1)
        products = optax.tree.add(products, more)
        size = optax.tree.size(zeros)
        info = info._replace(
            objective=info.objective - size * jnp.log(widening) / info.beta_used
        )
        learnt = by_moments(root, moved, products, info.squared_error, *how)
    else:
        steep, bend = scaled(moved, step), scaled(products, step)
        moved, learnt = by_natural_gradient(root, steep, bend, *how)
        error = info.squared_error * step**2
        info = info._replace(beta_used=step, squared_error=error)
    bounded = learnt[1].astype(dtype)
    learnt = learnt[0], jnp.maximum(bounded, lost_in_rounding(root, params))
    moved = root.times(scaled(within_reach(moved, most), -1))
    known = info.effective_sample_size > 0
    known &= all_finite((moved, products, learnt))
    moved = optax.tree.where(known, moved, zeros)
    kept, bounded = optax.tree.where(known, learnt, (root, state.bounded))
    effective = jnp.where(known, info.effective_sample_size, 0)
    info = with_constant(
        info._replace(effective_sample_size=effective), root, zeros, temp
    )
    moved = jax.tree.map(lambda leaf, p: leaf.astype(p.dtype), moved, params)
    return moved, GaussianState(
        next_step(state), state.key, limited(inside), kept, bounded, info
    )


def lost_in_rounding(root: Covariance, params: PyTree) -> jax.Array:
    """The share of parameters whose standard deviation is below a few spacings."""
    zeros = _coordinates(params)
    dtype = compute_dtype(zeros)
    lost = jnp.zeros((), dtype)
    for variance, x in zip(
        jax.tree.leaves(root.variances(zeros)), jax.tree.leaves(params), strict=True
    ):
        if x.dtype.itemsize >= 4:  # half precision is rounded at random
            least = SPACINGS * float(jnp.finfo(x.dtype).eps) * jnp.abs(x).astype(dtype)
            lost += (variance.astype(dtype) < jnp.square(least)).sum(dtype=dtype)
    return lost / max(optax.tree.size(params), 1)


def _tilted(
    loss: Loss | OutsideLoss,
    params: PyTree,
    zeros: PyTree,
    root: Covariance,
    slope: jax.Array,
    sampler: Sampler,
) -> Loss | OutsideLoss:
    """f(x + Lu) + `slope` |u|²/2 as a loss of u; with slope -T it is f + T log φ."""
    dtype = compute_dtype(zeros)

    def place(u: PyTree) -> PyTree:
        moved = jax.tree.map(
            lambda leaf, x: leaf.astype(x.dtype), root.times(u), widen(params)
        )
        return translate(params, moved)

    def tilted(u: PyTree, value: Any) -> jax.Array:
        return jnp.asarray(value).astype(dtype) + slope / 2 * inner(u, u, dtype)

    if isinstance(loss, OutsideLoss):
        losses_of = loss.after(place).losses_of
        outside = OutsideLoss(lambda u: jax.vmap(tilted)(u, losses_of(u)))
        return sampler.loss(outside, zeros, None)
    value_fn, batch = loss.source if sampler.traits.reads_again else (None, None)

    def seen(u: PyTree, *part: PyTree) -> Any:
        if value_fn is None:
            value, aux = loss.outputs(place(u))
        else:  # each device evaluates its part of the batch
            out = value_fn(place(u), *part)
            value, aux = out if loss.aux is not None else (out, None)
        value = tilted(u, value)
        return value if loss.aux is None else (value, aux)

    return sampler.loss(seen, zeros, batch, has_aux=loss.aux is not None)


def _coordinates(selected: PyTree) -> PyTree:
    """0 in the coordinates u, in one dtype for all leaves."""
    dtype = compute_dtype(selected)
    return optax.tree.zeros_like(selected, dtype=dtype)
