"""The stopping rules of a run, which are checked in every update."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._info import Info
from lejax._internal.checks import number, positive_count
from lejax._samplers.sampler import Sampler

# So many updates in a row that moved nothing: no later one is likely to.
FAILED_UPDATES = 10
# A share above this is all of them, to rounding.
ALL = 1 - 1e-6
# `Watch.reason` is 0, or a place in this list, counted from 1.
REASONS = ("target_value", "failed samples", "patience")


class Rules(NamedTuple):
    """The rules of a run; None for a rule that does not apply. See `minimize`."""

    target_value: Any
    patience: int | None


def make_rules(target_value: Any, patience: Any, sampler: Sampler) -> Rules:
    """The rules, with valid numbers, for a sampler that estimates what they need."""
    rules = Rules(
        None
        if target_value is None
        else number("target_value", target_value, traced=False),
        None if patience is None else positive_count("patience", patience, least=2),
    )
    if not sampler.traits.tells_objective and rules != Rules(None, None):
        raise ValueError(
            f"target_value={target_value!r} and patience={patience!r} go by the "
            "objective, which sgld does not estimate; leave them out and let callback "
            "decide, or use importance."
        )
    return rules


class Watch(NamedTuple):
    """The state of the rules.

    Attributes:
        estimates: the number of estimates.
        window: the last objectives, `patience` of them.
        best: the running mean when it last fell by more than its standard error.
        stale: the number of estimates since.
        failed: the number of the last estimates in a row without an effective sample.
        reason: 0, or the place in `REASONS` of the rule that stops the run, from 1.
    """

    estimates: jax.Array
    window: jax.Array
    best: jax.Array
    stale: jax.Array
    failed: jax.Array
    reason: jax.Array


def start_watch(patience: int | None, dtype: Any) -> Watch:
    """Before the first estimate."""
    window = jnp.zeros(patience or 1, dtype)  # checkpoints refuse empty arrays
    best = jnp.asarray(jnp.finfo(dtype).max, dtype)
    # One array each: the buffers of a run are donated, each of them once.
    estimates, stale, failed, reason = (jnp.zeros((), jnp.int32) for _ in range(4))
    return Watch(estimates, window, best, stale, failed, reason)


def look(watch: Watch, info: Info, rules: Rules) -> Watch:
    """After one more estimate."""
    dtype = info.objective.dtype
    largest = float(jnp.finfo(dtype).max)
    # Numbers throughout, so that `jax.debug_nans` has nothing to find.
    objective = jnp.nan_to_num(
        info.objective, nan=largest, posinf=largest, neginf=-largest
    )
    nothing = (info.effective_sample_size == 0) | (info.nonfinite_fraction > ALL)
    failed = jnp.where(nothing, watch.failed + 1, 0)
    reached = exhausted = jnp.zeros((), bool)
    if rules.target_value is not None:
        error = info.standard_error
        # Unknown of a single unit, or of few effective samples.
        error = jnp.where(jnp.isfinite(error) & (error < largest), error, 0)
        target = jnp.asarray(rules.target_value, dtype)
        reached = ~nothing & (objective + error <= target)
    if rules.patience is not None:
        watch = _with_objective(watch, objective, rules.patience)
        exhausted = watch.stale >= rules.patience
    reason = jnp.select(
        [reached, failed >= FAILED_UPDATES, exhausted],
        [jnp.full((), place, jnp.int32) for place in (1, 2, 3)],
        jnp.zeros((), jnp.int32),
    )
    return watch._replace(estimates=watch.estimates + 1, failed=failed, reason=reason)


def _with_objective(watch: Watch, objective: jax.Array, patience: int) -> Watch:
    window = watch.window.at[watch.estimates % patience].set(objective)
    mean = window.mean()
    # From their scatter, which includes batches and all that the sampler omits.
    error = window.std(ddof=1) / patience**0.5
    full = watch.estimates + 1 >= patience
    fell = mean < watch.best - error
    return watch._replace(
        window=window,
        best=jnp.where(full & fell, mean, watch.best),
        stale=jnp.where(full & ~fell, watch.stale + 1, 0),
    )
