"""What an update tells about itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._trees import PyTree


class Info(NamedTuple):
    """What one update tells about itself; every field is a scalar but `aux`.

    A quantity that the sampler cannot estimate is NaN; each sampler says which.

    Attributes:
        objective: the estimate of F_τ(x), of F_{τ,β}(x), or of the heat-regularised
            F^H_τ(x), in the units of the loss. For local entropy it is on average too
            high, by β/2 times the square of its standard error; +inf where every
            sample failed, and -inf where one loss was -inf.
        standard_error: the standard error of `objective`, from independent units (an
            antithetic pair is one, and so are all samples that share a draw). For local
            entropy NaN below ten effective samples: the formula then saturates near 1/β
            and would say too little.
        effective_sample_size: (Σw)²/Σw² for importance weights w; the number of draws
            that count for plain averages. 0 says that nothing could be estimated: the
            update is then zero.
        num_evaluations: how often the loss, or its gradient, was evaluated.
        nonfinite_fraction: the share of evaluations (for chains: of steps) that were
            lost because something was not finite.
        aux: the second output of `value_fn` at the centre point, with `has_aux`.
    """

    objective: jax.Array
    standard_error: jax.Array
    effective_sample_size: jax.Array
    num_evaluations: jax.Array
    nonfinite_fraction: jax.Array
    aux: PyTree = None


def make_info(
    dtype: Any,
    num_evaluations: int,
    objective: Any = jnp.nan,
    standard_error: Any = jnp.nan,
    effective_sample_size: Any = jnp.nan,
    nonfinite_fraction: Any = jnp.nan,
) -> Info:
    """An `Info` of fixed dtypes, so that the state of an optimiser never changes."""
    return Info(
        jnp.asarray(objective, dtype),
        jnp.asarray(standard_error, dtype),
        jnp.asarray(effective_sample_size, dtype),
        jnp.asarray(num_evaluations, jnp.int32),
        jnp.asarray(nonfinite_fraction, dtype),
    )
