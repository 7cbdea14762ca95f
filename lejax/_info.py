"""Diagnostics of one update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lejax._internal.text import estimate_text
from lejax._internal.types import PyTree

# From this k̂ on the largest weights are missing among the samples (Vehtari et al.).
TRUSTED_PARETO_K = 0.7

# Below this many effective samples the standard error of F saturates near 1/β.
TRUSTED_SAMPLE_SIZE = 20


class Info(NamedTuple):
    """Diagnostics of one update: estimates, their errors, and what they cost.

    Printed, it shows the fields that were estimated, rounded. Every field but the last
    two is a scalar array; `info._asdict()` is a dictionary of them. A field that the
    sampler does not estimate is NaN. Under `jax.debug_nans` it is the largest number
    of its dtype instead.

    Attributes:
        objective: the estimate of F_τ(x), F_{τ,β}(x) or the heat-regularised F^H_τ(x),
            in the units of the loss. For local entropy its bias is about β/2 times its
            squared standard error, upwards. It is +inf if every sample failed, and -inf
            if one loss was -inf. `importance` with `shaping` reports F^H_τ.
        standard_error: the standard error of `objective`, from independent units: an
            antithetic pair is one unit, and so are all samples that share a draw. For
            local entropy it is the first-order error times
            1 + 5/ESS + 1.5 max(k̂ - .2, 0), and NaN below twenty effective samples or
            from a `pareto_k` of .7 on. 95 % intervals then cover 89 to 99 % in all
            settings in which most updates report an error
            (`experiments/benchmarks/coverage.py`), and less in the others.
        effective_sample_size: (Σw)²/Σw² for importance weights w; for
            `importance_by_example` the harmonic mean over the examples; for heat the
            number of finite samples. If it is 0, nothing could be estimated and the
            update is zero.
        num_evaluations: evaluations of the loss, or of its gradient.
        nonfinite_fraction: the share of evaluations (for chains, of steps) that were
            dropped because a value was not finite.
        squared_error: V, the estimate of E|δ̂ - E δ̂|², the noise in the displacement
            δ̂ = -βτ ∇. Divide by (βτ)² for the noise in the gradient. With few
            effective samples it is too small.
        signal: (|δ̂|² - V)/|δ̂|², the share of |δ̂|² that is not noise: 1 for a perfect
            estimate, about 0 or negative for pure noise.
        signal_standard_error: the standard error of `signal`, by the jackknife over
            groups of draws. Only `importance` without `shaping` estimates it. It tends
            to be too large.
        pareto_k: k̂, the shape of a generalised Pareto distribution fitted to the
            largest min(J/5, 3√J) importance weights; 0 if all weights are equal. From
            .7 on, the largest weights are missing among the samples, and errors and
            effective sample sizes are too optimistic: raise J, or lower β or τ.
        tau_used: the τ of the estimate. It is not named `tau`, because
            `optax.inject_hyperparams` puts a `tau` into the same state.
        beta_used: its β; 1 for heat.
        aux: the second output of `value_fn` at the parameters themselves, with
            `has_aux`; otherwise None.
        gradient: the smoothed gradient, with `keep_gradient`; `certificate` needs it.
            None otherwise, and for leaves that a mask leaves out.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> smoothed = lejax.value_and_grad(jnp.square, lejax.pathwise(4), tau=0.5)
        >>> (_, info), _ = jax.jit(smoothed)(jnp.array(3.0), jax.random.key(0))
        >>> print(info)
        Info(objective=10.37 ± 0.4, effective_sample_size=4, num_evaluations=4,
        nonfinite_fraction=0, squared_error=0, signal=1, tau_used=0.5, beta_used=1)
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

    def __repr__(self) -> str:
        if not all(map(_is_scalar, self[:-2])):  # traced, or of several runs
            return f"Info{tuple.__repr__(self)}"
        return f"Info({', '.join(_known_fields(self))})"


def _is_scalar(value: Any) -> bool:
    """Whether it is one number that can be read now."""
    if isinstance(value, jax.Array):
        readable = not isinstance(value, Tracer) and not value.is_deleted()
        return readable and value.ndim == 0
    return isinstance(value, float | int | np.generic | np.ndarray) and not np.ndim(
        value
    )


def _known_fields(info: Info) -> Iterator[str]:
    """The fields that were estimated, as text."""
    errors = {"objective": info.standard_error, "signal": info.signal_standard_error}
    for name, value in zip(Info._fields[:-2], info[:-2], strict=True):
        if not name.endswith("standard_error") and not np.isnan(known_number(value)):
            error = known_number(errors.get(name, np.nan))
            yield f"{name}={estimate_text(known_number(value), error)}"
    if info.aux is not None:
        yield f"aux={info.aux!r:.200}"
    if info.gradient is not None:
        yield "gradient=..."


def known_number(value: Any) -> float:
    """A concrete scalar, NaN if it is `unknown`."""
    number = np.asarray(value)
    unknown = (
        np.issubdtype(number.dtype, np.floating)
        and number == jnp.finfo(number.dtype).max
    )
    return float("nan") if unknown else float(number)


def make_info(dtype: Any, num_evaluations: int, **known: Any) -> Info:
    """An `Info` of fixed dtypes, so that the state of an optimizer keeps its types.

    Fields that are left out, or None, are `unknown`. `signal_standard_error` is the
    standard error of |δ̂|² - V until `Sampler.run` divides it by |δ̂|².
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
    """The placeholder of a number that was not estimated."""
    debugging = jax.debug_nans.value
    return jnp.asarray(jnp.finfo(dtype).max if debugging else jnp.nan, dtype)


def is_known(value: jax.Array) -> jax.Array:
    """True where a number was estimated, and is not `unknown`."""
    return jnp.isfinite(value) & (value < jnp.finfo(value.dtype).max)
