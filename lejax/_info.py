"""What an update tells about itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._internal.types import PyTree

# From this k̂ on the largest weights are those that were not drawn (Vehtari et al.).
TRUSTED_PARETO_K = 0.7

# Below this many effective samples the standard error of F saturates near 1/β.
TRUSTED_SAMPLE_SIZE = 20


class Info(NamedTuple):
    """What one update tells about itself; scalars but for the last two.

    A quantity that the sampler cannot estimate is NaN; each sampler says which. In what
    is traced under `jax.debug_nans`, which would stop there, it is the largest number.

    Attributes:
        objective: the estimate of F_τ(x), of F_{τ,β}(x), or of the heat-regularised
            F^H_τ(x), in the units of the loss. For local entropy it is on average too
            high, by β/2 times the square of its standard error; +inf where every
            sample failed, and -inf where one loss was -inf. Of `importance` with
            `shaping` it is F^H_τ too.
        standard_error: the standard error of `objective`, from independent units (an
            antithetic pair is one, and so are all samples that share a draw). For local
            entropy NaN below twenty effective samples, or with a `pareto_k` of .7 and
            more: the largest weights are then missing in it as well. Else it is that of
            first order in 1/J times 1 + 5/ESS + 1.5 max(k̂ - .2, 0), by which 95 %
            intervals cover 89 to 99 % wherever most updates tell one
            (`experiments/benchmarks/coverage.py`). Where few updates do, these are the
            ones that saw no large weight, and cover less.
        effective_sample_size: (Σw)²/Σw² for importance weights w; the number of draws
            that count for plain averages. 0 says that nothing could be estimated: the
            update is then zero.
        num_evaluations: how often the loss, or its gradient, was evaluated.
        nonfinite_fraction: the share of evaluations (for chains: of steps) that were
            lost because something was not finite.
        squared_error: V, the estimate of E|δ̂ - E δ̂|², the noise in the displacement
            δ̂ = -βτ ∇ that the sampler estimated (as it is in a gradient, with 1/(βτ)²).
            With few effective samples it is too small, as `standard_error` would be.
        signal: the share of |δ̂|² that is no noise, (|δ̂|² - V)/|δ̂|²; 1 for a perfect
            estimate, around 0, and below, for nothing but noise.
        signal_standard_error: the standard error of `signal`, by the jackknife over
            groups of draws; `importance` tells it, without `shaping`. It is rather too
            large.
        pareto_k: k̂ of importance weights: the shape of a generalised Pareto
            distribution fitted to the largest, min(J/5, 3√J) of them. All other numbers
            see those weights alone that were drawn; from .7 on larger ones are missing,
            and intervals and effective samples promise too much, however many these
            are. Raise J, or lower β or τ. 0 where weights are equal.
        tau_used: the τ of the estimate. Not `tau`, which `optax.inject_hyperparams`
            puts into the same state.
        beta_used: its β; 1 for heat.
        aux: the second output of `value_fn` at the centre point, with `has_aux`.
        gradient: the gradient that went to the chain, with `keep_gradient`: what
            `certificate` wants. None for the leaves that a mask left out.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> smoothed = lejax.value_and_grad(jnp.square, lejax.importance(1000), tau=0.5)
        >>> (_, info), _ = jax.jit(smoothed)(jnp.array(3.0), jax.random.key(0))
        >>> print(f"F = {info.objective:.0f}, by {info.num_evaluations} evaluations")
        F = 5, by 1000 evaluations
        >>> print(bool(info.effective_sample_size > 10), info.nonfinite_fraction)
        True 0.0
    """

    objective: jax.Array
    standard_error: jax.Array
    effective_sample_size: jax.Array
    num_evaluations: jax.Array
    nonfinite_fraction: jax.Array
    squared_error: jax.Array
    signal: jax.Array
    signal_standard_error: jax.Array
    pareto_k: jax.Array
    tau_used: jax.Array
    beta_used: jax.Array
    aux: PyTree = None
    gradient: PyTree = None


def make_info(dtype: Any, num_evaluations: int, **known: Any) -> Info:
    """An `Info` of fixed dtypes, so that the state of an optimiser never changes.

    What is not known, or None, is `unknown`. `signal_standard_error` is that of
    |δ̂|² - V until `Sampler.run` divides it, and tells what all samplers tell alike.
    """
    nothing = unknown(dtype)
    values = {name: nothing for name in Info._fields[:-2]}
    values |= {
        name: jnp.asarray(value, dtype)
        for name, value in known.items()
        if value is not None
    }
    values["num_evaluations"] = jnp.asarray(num_evaluations, jnp.int32)
    return Info(**values)


def unknown(dtype: Any) -> jax.Array:
    """What stands for a number that nothing is known of."""
    debugging = jax.debug_nans.value
    return jnp.asarray(jnp.finfo(dtype).max if debugging else jnp.nan, dtype)


def is_known(value: jax.Array) -> jax.Array:
    """Whether it is not what stands there for want of a number."""
    return jnp.isfinite(value) & (value < jnp.finfo(value.dtype).max)
