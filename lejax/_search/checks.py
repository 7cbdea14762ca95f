"""Checks of the arguments of a search."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lejax._internal.checks import positive_count


def even_count(name: str, value: Any) -> int:
    """`value` as an even `int` of at least 4."""
    count = positive_count(name, value, least=4)
    if count % 2:
        raise ValueError(
            f"{name} must be even, as draws come in pairs, got {value!r}; "
            f"pass {name}={count + 1}."
        )
    return count


def check_largest(population: int, max_population: int | None) -> None:
    """Refuse a largest population below the first."""
    if max_population is not None and max_population < population:
        raise ValueError(
            f"max_population must be at least the population, {population}, got "
            f"{max_population!r}; pass for example max_population={8 * population}."
        )


def check_bounds(lower: Any, upper: Any) -> None:
    """Refuse known bounds that are no numbers, or not in order."""
    known = {}
    for name, value in (("lower", lower), ("upper", upper)):
        if isinstance(value, Tracer):
            return
        try:
            known[name] = np.asarray(value, float)
        except (TypeError, ValueError):
            known[name] = np.array(np.nan)
        if np.isnan(known[name]).any() or known[name].ndim > 1:
            raise ValueError(
                f"{name} must be a number or a vector, without NaN, got {value!r}; "
                f"pass for example {name}={-1.0 if name == 'lower' else 1.0}."
            )
    try:
        ordered = np.all(known["lower"] < known["upper"])
    except ValueError:
        ordered = False
    if not ordered:
        raise ValueError(
            f"lower must be below upper, in each parameter, got lower={lower!r} and "
            f"upper={upper!r}; pass for example lower=-1.0, upper=1.0."
        )


def floating_vector(mean: Any) -> jax.Array:
    """`mean` as a vector of float32 or float64."""
    x = jnp.asarray(mean)
    if x.ndim != 1 or not x.size:
        raise ValueError(
            f"mean must be a vector with at least one parameter, got shape {x.shape}; "
            "pass for example jax.flatten_util.ravel_pytree(params)[0]."
        )
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"mean must be of float32 or float64, got {x.dtype}; "
            "pass mean.astype(jnp.float32)."
        )
    return jnp.asarray(x, x.dtype)


def check_inside(x: jax.Array, lower: jax.Array, upper: jax.Array) -> None:
    """Refuse a first mean that is not finite, or outside of the box."""
    with jax.ensure_compile_time_eval():
        if any(isinstance(bound, Tracer) for bound in (lower, upper)):
            return
        inside = (x >= lower) & (x <= upper) & jnp.isfinite(x)
        if inside.all():
            return
        first = int(inside.argmin())
        raise ValueError(
            f"mean must be finite and inside the box, got mean[{first}] = "
            f"{float(x[first]):g} with lower {float(lower[first]):g} and upper "
            f"{float(upper[first]):g}; move it inside, or widen the box."
        )
