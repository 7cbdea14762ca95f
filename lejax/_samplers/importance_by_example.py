"""Local entropy of each example's loss: importance sampling, all examples at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.accumulator import log_weights
from lejax._estimators.draws import Draws, Plan, default_signs, fold_draws
from lejax._estimators.moments import (
    LossMoments,
    empty_moments,
    loss_moments,
    merge_moments,
    of_members,
    pooled,
)
from lejax._info import TRUSTED_SAMPLE_SIZE, Info, make_info, unknown
from lejax._internal.checks import optional_count, positive_count, sign_count
from lejax._internal.mesh_axes import make_axes, mean_over, varying
from lejax._internal.trees import all_finite, compute_dtype
from lejax._internal.types import LossFn, PyTree
from lejax._samplers.sampler import Sampler, make_sampler
from lejax._spaces.control_variate import sums_by_leaf, zero_sums
from lejax._spaces.per_example_noise import per_example_space, per_example_sums
from lejax._spaces.space import Space


class Weights(NamedTuple):
    """The sums of every example's weights, relative to exp(max_log_weight).

    Attributes:
        max_log_weight: (B,); finite, as in `_accumulator.WeightedAccumulator`.
        weight: (B,), Σw.
        square: (B,), Σw².
        failed: the number of draws of an example whose loss was not finite.
    """

    max_log_weight: jax.Array
    weight: jax.Array
    square: jax.Array
    failed: jax.Array


class Moved(NamedTuple):
    """Sums over draws and examples with the centred weights w/Σw - 1/J.

    Attributes:
        moments: of J times their mean over the examples, by unit.
        credit: by example.
        common: of what all examples share.
    """

    moments: LossMoments
    credit: PyTree
    common: PyTree


def importance_by_example(
    num_samples: int,
    *,
    chunk_size: int | None = None,
    antithetic: bool = True,
    axis_name: str | None = None,
    data_axis_name: str | None = None,
    signs_per_draw: int | None = None,
) -> Sampler:
    """Importance sampling of the mean over examples of each one's local entropy.

    For a loss f = (1/B) Σᵢ fᵢ over the examples of a batch this smooths

        G_{τ,β}(x) = -(1/B) Σᵢ (1/β) log E_φ exp(-β fᵢ(X)),   φ = N(x, τI),

    another objective than F_{τ,β}, whose exponent holds the mean of all. Being a mean
    over examples it has no bias of minibatches, whatever β; J samples leave one of the
    order 1/J. By Hölder's and Jensen's inequalities

        G_{τ,β} ≤ F_{τ,β} ≤ F^H_τ,

    with equality as β → 0, and of the first two on a batch of one example. Each example
    has its own draws in what it sees of each layer, as in `score_function`: no weights
    of whole networks degenerate with their size, and there are no gradients. Leaves in
    no such layer are drawn whole, in common.

    The examples lie along the first axis of the batch; what is in the loss beside the
    mean over them, a penalty say, is in every fᵢ.
    The displacement is -βτ ∇G = (1/B) Σᵢ E_qᵢ[X] - x, qᵢ ∝ exp(-βfᵢ) φ.

    Args:
        num_samples: J ≥ 2, the draws of every example. The loss is evaluated twice at
            each: for the weights, and with them.
        chunk_size: how many run at once under `vmap`; memory grows with it, not with J.
        antithetic: draw pairs x ± √τ ε. Weights are centred either way: single draws
            need twice the normals, and have less noise where losses are nearly linear.
        axis_name: the bound axis whose members share the J samples; see `Sampler`.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        signs_per_draw: how many samples at most, or pairs, share one draw under random
            signs, as in `importance`.

    Returns:
        A `Sampler` for `local_entropy`. Its info's `effective_sample_size` is that at
        which the relative variance of a weight is the mean over the examples; where it
        is below 20 the standard error is NaN. The noise of the displacement, and the
        share that is signal, are not estimated: NaN.

    Raises:
        ValueError: `num_samples` is not an integer of at least 2 (one draw is all spent
            on centring), `chunk_size` or `signs_per_draw` is not a positive integer,
            `signs_per_draw` is above 32, an axis is not bound, or both are the same;
            and in use, where the loss is no sum over the examples of the batch, by
            which alone it depends on a layer that they see apart.

    Example:
        Two examples with fᵢ = (w - yᵢ)²/2 each pull by -τ/(1 + τ) (w - yᵢ):

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.importance_by_example(10_000)
        >>> def loss(w, batch):
        ...     x, y = batch
        ...     return jnp.mean((x @ w - y) ** 2) / 2
        >>> step = lejax.step_fn(loss, sampler, tau=0.5)
        >>> batch = jnp.ones((2, 1)), jnp.array([[1.0], [3.0]])
        >>> print(f"{step(jnp.array([[5.0]]), jax.random.key(0), batch).item():.1f}")
        4.0

    References:
        The objective is this library's; for its relative see Garcia Trillos, Kaplan,
        Sanz-Alonso, *Variational characterizations of local entropy and heat
        regularization in deep learning*, section 5.1.2, on minibatches.
    """
    num_samples = positive_count("num_samples", num_samples, least=2)
    chunk_size = optional_count("chunk_size", chunk_size)
    signs_per_draw = sign_count(signs_per_draw)

    def run(
        key: jax.Array, state: PyTree, space: Space, tau: Any, beta: Any
    ) -> tuple[PyTree, PyTree, Info]:
        assert space.control_variate is not None
        examples, dtype = space.control_variate, compute_dtype(space.zeros)
        count, data = examples.baselines.size, examples.data_axis_name
        units = num_samples // 2 if antithetic else num_samples
        shared = signs_per_draw or default_signs(space.zeros, units, count)
        plan = Plan(num_samples, antithetic, chunk_size, shared)

        def evaluate(displacement: PyTree, sign: float, number: jax.Array) -> PyTree:
            del number
            _, seen = examples.examine(displacement, sign=sign)
            # What is in the loss beside the sum is in that of every example.
            losses = count * seen.losses + mean_over(seen.rest_of_loss, data)
            return log_weights(losses, beta), seen.bases

        found = fold_draws(
            key,
            space,
            tau,
            evaluate,
            _weigh,
            varying(_no_weights(count, dtype), data),
            plan,
        )
        weights = found if space.axis_name is None else _of_all(found, space.axis_name)
        some = weights.weight > 0
        size = jnp.asarray(num_samples, dtype)

        def absorb(total: Moved, draws: Draws) -> Moved:
            (logs, spans), (noises, others) = draws.outputs, draws.displacements
            relative = _relative(logs, weights.max_log_weight)
            centred = relative / jnp.where(some, weights.weight, 1) - 1 / size
            centred = jnp.where(draws.valid[..., None] & some, centred, 0) / count
            sums = per_example_sums(examples, noises, draws.signs, centred, spans)
            of_all = mean_over(centred.sum(-1), data)
            valid = jnp.broadcast_to(draws.valid, of_all.shape)
            moments = loss_moments(size * of_all, valid, draws.valid)
            common = draws._replace(displacements=others).moment(of_all)
            return Moved(
                merge_moments(total.moments, moments),
                jax.tree.map(jnp.add, total.credit, sums),
                optax.tree.add(total.common, common),
            )

        moved = fold_draws(
            key,
            space,
            tau,
            evaluate,
            absorb,
            Moved(
                empty_moments(dtype), zero_sums(examples, common=False), space.zeros[1]
            ),
            plan,
        )
        moved = moved._replace(credit=sums_by_leaf(examples, moved.credit))
        if space.axis_name is not None:
            moments = pooled(of_members(moved.moments, space.axis_name))
            sums = jax.lax.psum((moved.credit, moved.common), space.axis_name)
            moved = Moved(moments, *sums)
        displacement = space.lift((mean_over(moved.credit, data), moved.common))
        displacement = optax.tree.where(
            all_finite(displacement), displacement, optax.tree.zeros_like(displacement)
        )

        return (
            displacement,
            state,
            _info(weights, moved.moments, num_samples, beta, data),
        )

    return make_sampler(
        run,
        "importance_by_example",
        "local entropy",
        space_maker=_space,
        axes=make_axes(axis_name, data_axis_name),
        num_samples=num_samples,
    )


def _space(value_fn: LossFn, params: PyTree, batch: PyTree, *options: Any) -> Space:
    """`per_example_space`, where it finds the examples of the batch."""
    space = per_example_space(value_fn, params, batch, *options)
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)}
    examples = space.control_variate
    if examples is None or examples.baselines.size not in sizes:
        raise ValueError(
            "value_fn is no sum over the examples of the batch, by which alone it "
            "depends on a dense layer that they see apart: no example has a loss of "
            "its own; lejax.reduction_report may say why, and lejax.importance smooths "
            "any loss."
        )
    return space


def _info(
    weights: Weights,
    moments: LossMoments,
    num_samples: int,
    beta: jax.Array,
    data_axis_name: str | None,
) -> Info:
    """What the weights of all examples tell."""
    some, dtype = weights.weight > 0, weights.weight.dtype
    # An example without any weight has nothing but its failures.
    square = jnp.where(some, weights.square / weights.weight**2, 1)
    infinite = jnp.where(weights.max_log_weight > 0, jnp.inf, -jnp.inf)
    log_mean = jnp.where(
        some, weights.max_log_weight + jnp.log(weights.weight / num_samples), infinite
    )
    any_weight, log_mean, square, failed = mean_over(
        (
            some.any().astype(dtype),
            log_mean.mean(),
            square.mean(),
            weights.failed.astype(dtype) / (num_samples * some.size),
        ),
        data_axis_name,
    )
    effective = jnp.where(any_weight > 0, 1 / square, 0)
    return make_info(
        dtype,
        2 * num_samples,
        objective=-log_mean / beta,
        standard_error=jnp.where(
            effective < TRUSTED_SAMPLE_SIZE,
            unknown(dtype),
            moments.standard_error() / beta,
        ),
        effective_sample_size=effective,
        nonfinite_fraction=failed,
    )


def _no_weights(count: int, dtype: Any) -> Weights:
    zeros, none = jnp.zeros(count, dtype), jnp.zeros((), jnp.int32)
    return Weights(jnp.full(count, jnp.finfo(dtype).min, dtype), zeros, zeros, none)


def _relative(log_weights: jax.Array, top: jax.Array) -> jax.Array:
    """exp(ℓ - m); 0 where ℓ is not finite."""
    finite = jnp.isfinite(log_weights)
    return jnp.where(finite, jnp.exp(jnp.where(finite, log_weights, top) - top), 0)


def _weigh(total: Weights, draws: Draws) -> Weights:
    """The sums with these draws, of which the log-weights are (k, p, g, B)."""
    log_weights, _ = draws.outputs
    real = jnp.broadcast_to(draws.valid[..., None], log_weights.shape)
    limits = jnp.finfo(log_weights.dtype)
    # A loss of -inf has all the weight, which no average can bear.
    clipped = jnp.where(real & ~jnp.isnan(log_weights), log_weights, limits.min)
    top = clipped.clip(limits.min, limits.max).max((0, 1, 2))
    w = jnp.where(real, _relative(log_weights, top), 0)
    failed = (real & ~jnp.isfinite(log_weights)).sum(dtype=jnp.int32)
    found = Weights(top, w.sum((0, 1, 2)), (w * w).sum((0, 1, 2)), failed)
    top = jnp.maximum(total.max_log_weight, found.max_log_weight)
    both = jax.tree.map(jnp.add, _rescaled(total, top), _rescaled(found, top))
    return both._replace(max_log_weight=top)


def _of_all(weights: Weights, axis_name: str) -> Weights:
    top = jax.lax.pmax(weights.max_log_weight, axis_name)
    total = jax.lax.psum(_rescaled(weights, top), axis_name)
    return total._replace(max_log_weight=top)


def _rescaled(weights: Weights, top: jax.Array) -> Weights:
    factor = jnp.exp(weights.max_log_weight - top)
    return weights._replace(
        weight=weights.weight * factor, square=weights.square * factor**2
    )
