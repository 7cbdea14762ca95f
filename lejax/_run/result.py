"""What a whole run found."""

from __future__ import annotations

import math
from typing import NamedTuple

from lejax._internal.types import PyTree
from lejax._run.history import History


class MinimizeResult(NamedTuple):
    """What `minimize` returns; printed, a summary.

    Attributes:
        params: the last parameters.
        objective: the estimate of the smoothed loss there, of the last batch; NaN of
            `sgld`.
        standard_error: of `objective`, of the sampling alone; NaN where it is unknown.
        num_updates: how many there were.
        num_evaluations: of the loss, or of its gradient, in all.
        seconds: of the whole call, compilation and callbacks among it.
        effective_sample_size: of an update, on average; NaN where it is unknown.
        nonfinite_fraction: the share of all samples that failed.
        signal: the share of all steps of the run, in squared length, that was no noise;
            NaN where it is unknown.
        certified: the share of the updates that were sure, at 95 %, to lower the local
            entropy of their batch (see `certificate`); NaN where that is unknown.
        history: NumPy arrays `objective`, `standard_error`, `effective_sample_size`,
            `num_evaluations`, `nonfinite_fraction`, `squared_error` and `signal`, as
            `Info` has them, `squared_norm`, |δ̂|², and `certified`, 1 or 0 where it is
            known, one entry for each estimate: entry k is of the parameters after k
            updates.
        reason: what stopped it: "num_updates", "target_value", "patience", "callback",
            "batches" (there were no more) or "failed samples".

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> result = lejax.minimize(
        ...     lambda x: 0.5 * x**2,
        ...     jnp.array(3.0),
        ...     tau=0.5,
        ...     key=jax.random.key(0),
        ...     num_updates=20,
        ... )
        >>> print(result.reason, result.num_updates, result.num_evaluations)
        num_updates 20 21000
        >>> print(result.history.objective[[0, 5, 20]].round(1))
        [3.2 0.3 0.2]
    """

    params: PyTree
    objective: float
    standard_error: float
    num_updates: int
    num_evaluations: int
    seconds: float
    effective_sample_size: float
    nonfinite_fraction: float
    signal: float
    certified: float
    history: History
    reason: str

    def __str__(self) -> str:
        effective = f"{self.effective_sample_size:.0f} samples in an update"
        if math.isnan(self.effective_sample_size):
            effective = "not estimated"
        lines = (
            ("objective", estimate_text(self.objective, self.standard_error)),
            ("updates", f"{self.num_updates:,}, stopped by {self.reason}"),
            ("evaluations", f"{self.num_evaluations:,} in {self.seconds:.1f} s"),
            ("effective", effective),
            ("failed", f"{self.nonfinite_fraction:.1%} of the samples"),
            ("signal", _share(self.signal, "of the steps")),
            ("certified", _share(self.certified, "of the updates")),
        )
        return "\n".join(f"{name:<12} {text}" for name, text in lines)


def _share(value: float, of: str) -> str:
    return "not estimated" if math.isnan(value) else f"{value:.0%} {of}"


def estimate_text(value: float, error: float) -> str:
    """A value and its error, as far as they are known."""
    if math.isnan(value):
        return "not estimated"
    return f"{value:.4g}" + (f" ± {error:.1g}" if math.isfinite(error) else "")
