"""The streaming log-weighted accumulator of local entropy: an online softmax.

Of log-weights ℓ = -βf and displacements δ from x it keeps sums that are scaled by
exp(-m), m the largest ℓ so far; two of them merge into one. The same merge serves
chunks, devices and hosts. A unit (an antithetic pair, or a single draw) of displacement
δ has n members with the weights w = exp(ℓ - m), their sum t = Σw and their signed sum
D = Σ±w.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._draws import Draws
from lejax._trees import PyTree, scaled


class WeightedAccumulator(NamedTuple):
    """Sums over units; weights are relative to exp(max_log_weight).

    Attributes:
        max_log_weight: m, the largest ℓ. Never infinite: the lowest finite number where
            nothing has a weight, the highest where a loss was -inf.
        size: Σn, the number of samples.
        size_square: Σn².
        failed: the number of samples whose loss was not finite.
        weight: S = Σt.
        member_square: K = Σw², over samples.
        weight_square: T2 = Σt².
        size_weight: Σnt.
        moment_square: Q2 = ΣD²|δ|².
        moment: v = ΣDδ.
        cross_moment: r = ΣDtδ.
    """

    max_log_weight: jax.Array
    size: jax.Array
    size_square: jax.Array
    failed: jax.Array
    weight: jax.Array
    member_square: jax.Array
    weight_square: jax.Array
    size_weight: jax.Array
    moment_square: jax.Array
    moment: PyTree
    cross_moment: PyTree


class WeightedEstimate(NamedTuple):
    """What an accumulator says about q ∝ exp(ℓ) φ.

    Attributes:
        displacement: δ̂ = v/S, the estimate of E_q[X] - x; 0 where nothing has a weight.
        squared_error: V, the estimate of E|δ̂ - δ|².
        log_mean: log((1/J) Σ exp ℓ); ∓inf where nothing, or an infinite weight, counts.
        log_mean_error: its standard error, by independent units.
        effective_sample_size: S²/K.
        failed_fraction: the share of samples whose loss was not finite.
    """

    displacement: PyTree
    squared_error: jax.Array
    log_mean: jax.Array
    log_mean_error: jax.Array
    effective_sample_size: jax.Array
    failed_fraction: jax.Array


def empty(zeros: PyTree, dtype: Any) -> WeightedAccumulator:
    """The accumulator of nothing, the neutral element of `merge`."""
    zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    return WeightedAccumulator(
        max_log_weight=jnp.asarray(jnp.finfo(dtype).min, dtype),
        size=none,
        size_square=none,
        failed=none,
        weight=zero,
        member_square=zero,
        weight_square=zero,
        size_weight=zero,
        moment_square=zero,
        moment=zeros,
        cross_moment=zeros,
    )


def summarise(draws: Draws) -> WeightedAccumulator:
    """Accumulate one chunk, whose outputs are the log-weights ℓ, (k, p)."""
    log_weights, valid = draws.outputs, draws.valid
    dtype = log_weights.dtype
    # ℓ is -inf or NaN where a loss was +inf or NaN: no weight. A loss of -inf has all
    # the weight, which no average can bear: m at the top of the range says so.
    counted = jnp.isfinite(log_weights) & valid
    clipped = jnp.where(
        valid & ~jnp.isnan(log_weights), log_weights, jnp.finfo(dtype).min
    ).clip(jnp.finfo(dtype).min, jnp.finfo(dtype).max)
    top = clipped.max()
    w = jnp.where(counted, jnp.exp(clipped - top), 0)
    t = w.sum(0)
    d = jnp.asarray(draws.signs, dtype) @ w
    size = draws.signs.size * valid.sum(dtype=jnp.int32)
    squared_norm = jax.vmap(lambda u: optax.tree.norm(u, squared=True))

    def contract(coefficients: jax.Array) -> PyTree:
        return jax.tree.map(
            lambda leaf: jnp.tensordot(coefficients.astype(leaf.dtype), leaf, 1),
            draws.displacements,
        )

    return WeightedAccumulator(
        max_log_weight=top,
        size=size,
        size_square=draws.signs.size * size,
        failed=(~counted & valid).sum(dtype=jnp.int32),
        weight=t.sum(),
        member_square=(w * w).sum(),
        weight_square=(t * t).sum(),
        size_weight=draws.signs.size * t.sum(),
        moment_square=(d * d * squared_norm(draws.displacements).astype(dtype)).sum(),
        moment=contract(d),
        cross_moment=contract(d * t),
    )


def merge(a: WeightedAccumulator, b: WeightedAccumulator) -> WeightedAccumulator:
    """The accumulator of both: associative and commutative to rounding."""
    top = jnp.maximum(a.max_log_weight, b.max_log_weight)
    return jax.tree.map(jnp.add, _rescaled(a, top), _rescaled(b, top))._replace(
        max_log_weight=top
    )


def merge_over(acc: WeightedAccumulator, axis_name: str) -> WeightedAccumulator:
    """`merge` over the members of a named axis: one pmax and one psum."""
    top = jax.lax.pmax(acc.max_log_weight, axis_name)
    return jax.lax.psum(_rescaled(acc, top), axis_name)._replace(max_log_weight=top)


def _rescaled(acc: WeightedAccumulator, top: jax.Array) -> WeightedAccumulator:
    once = jnp.exp(acc.max_log_weight - top)
    twice = once * once
    return acc._replace(
        weight=acc.weight * once,
        member_square=acc.member_square * twice,
        weight_square=acc.weight_square * twice,
        size_weight=acc.size_weight * once,
        moment_square=acc.moment_square * twice,
        moment=scaled(acc.moment, once),
        cross_moment=scaled(acc.cross_moment, twice),
    )


def estimate(acc: WeightedAccumulator) -> WeightedEstimate:
    """The estimates that the sums allow."""
    dtype = acc.weight.dtype
    counts = acc.weight > 0
    s = jnp.where(counts, acc.weight, 1)
    size, size_square = acc.size.astype(dtype), acc.size_square.astype(dtype)
    displacement = scaled(acc.moment, 1 / s)
    cross = jnp.asarray(optax.tree.vdot(displacement, acc.cross_moment), dtype)
    norm_square = jnp.asarray(optax.tree.norm(displacement, squared=True), dtype)
    squared_error = (
        acc.moment_square - 2 * cross + norm_square * acc.weight_square
    ) / (s * s)
    # Σ(t/S - n/N)² over units is the squared relative error of the mean weight; for
    # P units of one size it is T2/S² - 1/P. The factor P/(P - 1), of the largest units,
    # makes few units honest, and a single one NaN.
    relative = (
        acc.weight_square / (s * s)
        - 2 * acc.size_weight / (s * size)
        + size_square / (size * size)
    )
    units = size * size / size_square
    relative = jnp.maximum(relative, 0) * units / (units - 1)
    infinite = jnp.where(acc.max_log_weight > 0, jnp.inf, -jnp.inf).astype(dtype)
    return WeightedEstimate(
        displacement=displacement,
        squared_error=squared_error,
        log_mean=jnp.where(counts, acc.max_log_weight + jnp.log(s / size), infinite),
        log_mean_error=jnp.sqrt(relative),
        effective_sample_size=jnp.where(
            counts, acc.weight**2 / jnp.where(counts, acc.member_square, 1), 0
        ),
        failed_fraction=acc.failed.astype(dtype) / size,
    )
