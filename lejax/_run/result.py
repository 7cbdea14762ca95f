"""The result of a whole run."""

from __future__ import annotations

import html
import math
from typing import NamedTuple

from lejax._internal.text import estimate_text, share_text
from lejax._internal.types import PyTree
from lejax._run.history import History
from lejax._run.loop import MinimizeState
from lejax._run.stopping import Rules


class MinimizeResult(NamedTuple):
    """The result of `minimize`. Printed, or at the end of a cell, it is a summary.

    `x`, `fun` and `nfev` are SciPy's names for `params`, `objective` and
    `num_evaluations`. `lejax.plot(result)` draws the history.

    Attributes:
        params: the last parameters.
        objective: the estimate of the smoothed loss at `params`, on the last batch; NaN
            for `sgld`.
        standard_error: the standard error of `objective`, from sampling only; NaN if
            it is unknown.
        num_updates: the number of updates.
        num_evaluations: all evaluations of the loss, or of its gradient.
        seconds: the time of the whole call, with compilation and callbacks.
        effective_sample_size: the mean over the updates; NaN if it is unknown.
        nonfinite_fraction: the share of all samples that failed.
        signal: the share of the squared length of all steps that is not noise; NaN if
            it is unknown.
        certified: the share of updates that lower the local entropy of their batch with
            95 % confidence (see `certificate`); NaN if that is unknown.
        history: a named tuple of NumPy arrays with an entry for each estimate; entry k
            belongs to the parameters after k updates. The fields are `objective`,
            `standard_error`, `effective_sample_size`, `num_evaluations`,
            `nonfinite_fraction`, `squared_error`, `signal`, `pareto_k`, `tau_used` and
            `beta_used` of `Info`, `squared_norm` (|δ̂|²), `slope` (gradient times
            update: negative if it descends) and `certified` (1 or 0).
        reason: the reason of the end: "num_updates", "target_value", "patience",
            "callback", "batches" (there were no more), "failed samples" or
            "interrupted" (Ctrl-C).
        success: False if the run ended because all samples failed, if it was
            interrupted, or if it ended before the `target_value` or the `patience`
            that was set.
        message: `reason` in a sentence.
        state: the state from which `minimize(..., state=result.state)` continues.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> result = lejax.minimize(
        ...     lambda x: 0.5 * x**2,
        ...     jnp.array(3.0),
        ...     tau=0.5,
        ...     key=jax.random.key(0),
        ...     num_updates=20,
        ... )
        >>> print(result.success, result.message, result.nfev)
        True All updates were made after 20 updates. 21000
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
    success: bool
    message: str
    state: MinimizeState

    @property
    def x(self) -> PyTree:
        """`params`, by its name in SciPy."""
        return self.params

    @property
    def fun(self) -> float:
        """`objective`, by its name in SciPy."""
        return self.objective

    @property
    def nfev(self) -> int:
        """`num_evaluations`, by its name in SciPy."""
        return self.num_evaluations

    def __repr__(self) -> str:
        return "\n".join(f"{name:<12} {text}" for name, text in self._rows())

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._rows()
        )
        return f"<table>{''.join(rows)}</table>"

    def _rows(self) -> tuple[tuple[str, str], ...]:
        effective = f"{self.effective_sample_size:.0f} samples in an update"
        if math.isnan(self.effective_sample_size):
            effective = "not estimated"
        how = f"stopped by {self.reason}"
        if self.reason == "interrupted":
            how = "then interrupted"
        return (
            ("objective", estimate_text(self.objective, self.standard_error)),
            ("updates", f"{self.num_updates:,}, {how}"),
            ("evaluations", f"{self.num_evaluations:,} in {self.seconds:.1f} s"),
            ("effective", effective),
            ("failed", f"{self.nonfinite_fraction:.1%} of the samples"),
            ("signal", share_text(self.signal, "of the steps")),
            ("certified", share_text(self.certified, "of the updates")),
        )


def outcome(reason: str, num_updates: int, rules: Rules) -> tuple[bool, str]:
    """Whether a run succeeded, and why it ended, in a sentence."""
    after = f"after {num_updates:,} updates"
    if reason in ("num_updates", "batches"):
        what = (
            "All updates were made" if reason == "num_updates" else "No batch is left"
        )
        missed = [name for name, value in rules._asdict().items() if value is not None]
        beside = f"; {' and '.join(missed)} did not end it earlier" if missed else ""
        return not missed, f"{what} {after}{beside}."
    return reason not in ("failed samples", "interrupted"), {
        "target_value": f"The objective reached target_value {after}.",
        "patience": f"The objective stopped falling {after}.",
        "callback": f"The callback stopped the run {after}.",
        "failed samples": f"No sample was effective any more {after}.",
        "interrupted": f"Ctrl-C ended the run {after}; its state can continue.",
    }[reason]
