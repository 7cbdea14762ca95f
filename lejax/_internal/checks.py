"""Checks of arguments: each error names the argument, its value, and the remedy."""

from __future__ import annotations

import contextlib
import inspect
import math
import operator
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from lejax._internal.types import LossFn, PyTree

LEAVE_OUT = (
    "exclude it with mask= of local_entropy, heat or gaussian (True for the leaves to "
    "perturb), or let value_fn close over it."
)

# Draws with a standard deviation of fewer spacings of the dtype are lost in rounding.
SPACINGS = 4

# By default variances stay within this factor of the initial ones.
WIDEST = 1e10


def positive_count(name: str, value: Any, *, least: int = 1) -> int:
    """`value` as an `int` of at least `least`."""
    try:
        count = operator.index(value) if not isinstance(value, bool) else 0
    except TypeError:
        count = 0
    if count < least:
        raise ValueError(
            f"{name} must be an integer of at least {least}, got {value!r}; "
            f"pass for example {name}=100."
        )
    return count


def optional_count(name: str, value: Any) -> int | None:
    """`value` as a positive `int`, or None."""
    return None if value is None else positive_count(name, value)


def counts_of(settings: Any, **least: int) -> None:
    """Converts fields of a frozen dataclass to `int`s of at least `least`.

    `chunk_size` and `signs_per_draw` may be None.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is None and name in ("chunk_size", "signs_per_draw"):
            continue
        value = positive_count(name, value, least=bound)
        if name == "signs_per_draw" and value > 32:
            raise ValueError(
                f"signs_per_draw must be at most 32, got {value}; lower it: "
                "a draw has 32 random signs for each of its entries."
            )
        object.__setattr__(settings, name, value)


def number(
    name: str,
    value: Any,
    must_be: str = "a finite number",
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    example: float = 0.01,
    reason: str = "; ",
    traced: bool = True,
) -> float:
    """`value` as a finite number within the bounds, which `must_be` describes.

    Returns NaN for a tracer, whose value is not available. If `traced` is False, a
    tracer is an error. In the message `reason` stands between value and example.
    """
    if traced and isinstance(value, Tracer):
        if value.shape != ():
            raise ValueError(
                f"{name} must be a scalar, got an array of shape {value.shape}; "
                f"pass one number."
            )
        return math.nan
    found = math.nan
    if not isinstance(value, (str, bool)):
        with contextlib.suppress(TypeError, ValueError):
            found = float(value)
    if not (math.isfinite(found) and above < found < below and least <= found <= most):
        mend = f"pass for example {name}={example}."
        if name.endswith("(0)"):
            mend = f"let the schedule begin there, for example with {example}."
        raise ValueError(f"{name} must be {must_be}, got {shown(value)}{reason}{mend}")
    return found


def shown(value: Any) -> str:
    """The text of a value in an error."""
    if getattr(value, "ndim", 0):
        return f"an array of shape {value.shape}"
    if isinstance(value, jax.Array) and not isinstance(value, Tracer):
        return f"{value}"
    return repr(value)


def positive(name: str, value: Any) -> float:
    """`value` as a positive finite number; NaN for a tracer."""
    return number(name, value, "a positive finite number", above=0)


def positive_or_schedule(name: str, value: Any) -> float:
    """`positive` for a number, or for the first value of a schedule."""
    return positive(*first_value(name, value))


def at_most_one(
    name: str, value: Any, *, example: float = 0.1, reason: str = "; "
) -> None:
    """Raises for a number that is not above 0 and at most 1; tracers pass."""
    positive(name, value)
    number(name, value, "at most 1", most=1, example=example, reason=reason)


def above_one(name: str, value: Any) -> None:
    """Raises for a number that is not above 1; tracers pass."""
    positive(name, value)
    number(name, value, "above 1", above=1, example=10.0, reason=": it is a factor; ")


def fraction(name: str, value: Any) -> None:
    """Raises for a number that is not between 0 and 1; tracers pass."""
    number(name, value, "between 0 and 1", above=0, below=1, example=0.5)


def inverse_of_temperature(beta: Any, temperature: Any) -> None:
    """Raises for a β that is not positive, or above 1/T; tracers pass."""
    inverse = positive_or_schedule("beta", beta)
    name, first = first_value("temperature", temperature)
    known = number(name, first, "a finite number of at least 0", least=0, example=1.0)
    if inverse * known > 1 + 1e-6:
        raise ValueError(
            f"beta must be at most 1/temperature = {1 / known:g}, got {beta!r}: "
            "at 1/T, q is proportional to exp(-f/T) itself; lower it."
        )


def bounds_about(tau: Any, bounds: Any) -> tuple[Any, Any]:
    """The smallest and the largest variance; by default a wide interval around τ."""
    if bounds is None:
        return tau / WIDEST, tau * WIDEST
    try:
        low, high = bounds
    except (TypeError, ValueError):
        low = high = bounds
    known = positive("bounds", low), positive("bounds", high), positive("tau", tau)
    if not any(map(math.isnan, known)) and not low <= tau <= high:
        raise ValueError(
            f"bounds must be a pair (lower, upper) with tau between them, got "
            f"{bounds!r} for tau={tau!r}; pass for example bounds=(1e-6, 1e2)."
        )
    return low, high


def first_value(name: str, value: Any) -> tuple[str, Any]:
    """The name and the value of a number, or of the first value of a schedule."""
    if not callable(value):
        return name, value
    # A schedule at a constant step is a constant, also inside of `jax.jit`.
    step = np.zeros((), np.int32)
    if not takes(value, step):
        raise TypeError(
            f"{name} must be a number, or a schedule: a function of the number of "
            f"steps so far, got {value!r}, which does not take it; pass for example "
            f"{name}=lambda step: 0.1."
        )
    with jax.ensure_compile_time_eval():
        return f"{name}(0)", value(jnp.asarray(step))


def takes(function: Any, *args: Any) -> bool:
    """Whether the signature of a function accepts these arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return True
    try:
        signature.bind(*args)
    except TypeError:
        return False
    return True


def typed_key(key: Any) -> None:
    """Raises for everything except a single typed key."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return
        raise ValueError(
            f"key must be one key, got an array of keys of shape {key.shape}; "
            "pass one of them, or map over them with jax.vmap."
        )
    got = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key)
    raise TypeError(
        f"key must be a typed key, got {got}; pass key=jax.random.key(0), or "
        "jax.random.wrap_key_data(key) for a raw uint32 key."
    )


def loss_function(value_fn: LossFn | None) -> LossFn:
    """`value_fn`, which must be a function."""
    if value_fn is None:
        raise ValueError(
            "value_fn is missing; pass the loss to update: "
            "update(updates, state, params, value_fn=loss, batch=batch)."
        )
    if not callable(value_fn):
        raise TypeError(
            f"value_fn must be a function (params, batch) -> scalar, got {value_fn!r}; "
            "pass the loss itself."
        )
    return value_fn


def given(params: Any) -> None:
    """Raises for None, which optax passes if the caller leaves the parameters out."""
    if params is None:
        raise ValueError(
            "params is None; pass the current parameters, to an optax transformation "
            "as the third argument: update(updates, state, params, value_fn=...)."
        )


def float_leaves(params: PyTree) -> PyTree:
    """`params` as arrays; raises if there is no leaf, or one that is not floating."""
    given(params)

    def is_masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_masked)
    if not leaves:
        raise ValueError(
            f"params must have at least one leaf to perturb, got {params!r}; "
            "pass a tree of floating arrays, or a mask that selects one."
        )
    for path, leaf in leaves:
        where = f"params{jax.tree_util.keystr(path)}"
        if is_masked(leaf):
            raise ValueError(
                f"{where} is an optax.MaskedNode, so value_fn would not get the "
                "parameters; instead of optax.masked or optax.partition, pass mask= "
                "to local_entropy, heat or gaussian themselves."
            )
        dtype = dtype_of(leaf)
        if dtype is None:
            raise ValueError(
                f"{where} is {leaf!r:.60}, which is no array and cannot be perturbed; "
                f"{LEAVE_OUT}"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{where} has dtype {dtype} and cannot be perturbed; make it floating, "
                f"{LEAVE_OUT}"
            )
    # Strongly typed, as the loss is traced here and runs at a sum of two arrays.
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype=jnp.asarray(leaf).dtype), params
    )


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array or a number; None for anything else."""
    is_array = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    known = isinstance(leaf, bool | int | float | complex) or is_array
    return jnp.result_type(leaf) if known and not isinstance(leaf, type) else None


def warn_of_rounding(params: PyTree, tau: Any) -> None:
    """Warns if draws of this variance are lost in rounding.

    Points in half precision are rounded at random, so nothing is lost there.
    """
    if isinstance(tau, Tracer) or math.isnan(tau):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, Tracer) or leaf.dtype.itemsize < 4 or not leaf.size:
            continue
        with jax.ensure_compile_time_eval():
            largest = float(jnp.abs(leaf).max())
        spacing = float(jnp.finfo(leaf.dtype).eps) * largest
        if math.sqrt(tau) < SPACINGS * spacing < math.inf:
            warnings.warn(
                f"params{jax.tree_util.keystr(path)} has numbers of {largest:.2g}, "
                f"where {leaf.dtype} has steps of {spacing:.2g}: draws with the "
                f"standard deviation {math.sqrt(tau):.2g} (tau={tau:.2g}) are lost in "
                "rounding; let params be an offset from a fixed point, or set "
                "jax_enable_x64.",
                stacklevel=3,
            )


def untraced(name: str, arguments: Any, mend: str) -> None:
    """Raises for tracers in the arguments of `name`, which branches on values."""
    for leaf in jax.tree.leaves(arguments):
        if isinstance(leaf, Tracer):
            raise TypeError(
                f"{name} compiles its own work and cannot be traced, got {leaf}; {mend}"
            )
