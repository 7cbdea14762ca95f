"""What a run's history says against its settings, and which knob to turn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lejax._history import History, known, known_mean
from lejax._importance import TRUSTED_SAMPLE_SIZE
from lejax._sampler import Sampler

# Updates average noise, some tens of them; less signal than this they do not find.
LEAST_SIGNAL = 0.1
# Of fewer estimates nothing is said about their scatter.
LEAST_ESTIMATES = 10


def advice(history: History, sampler: Sampler) -> Iterator[str]:
    """One sentence and its mend for each thing that is wrong.

    A field that the sampler cannot estimate says nothing.
    """
    failed = known_mean(history.nonfinite_fraction)
    if failed > 1 - 1e-6 or not np.any(history.effective_sample_size != 0):
        yield (
            f"no sample of {sampler.name} was effective in any update, so the "
            "parameters have not moved; start where value_fn is finite, or lower tau."
        )
        return
    if failed > 0.5:
        yield (
            f"{failed:.0%} of the samples failed: value_fn was not finite there; lower "
            "tau, so that they stay nearer to the parameters."
        )
    effective = known_mean(history.effective_sample_size)
    # Heat weighs its draws alike: two of them may do.
    if sampler.regularization != "heat" and effective < TRUSTED_SAMPLE_SIZE:
        yield (
            f"{effective:.1f} samples were effective in an update, on average, below "
            f"{TRUSTED_SAMPLE_SIZE}: the estimates follow a few of them; raise "
            f"num_samples of {sampler.name}, or lower beta or tau."
        )
    signal = _signal(history)
    if signal < LEAST_SIGNAL:
        yield (
            f"the updates were mostly noise ({max(signal, 0):.0%} signal); raise "
            f"num_samples of {sampler.name}, or lower the rate of the optimizer."
        )


def _signal(history: History) -> float:
    """The share of the objective's variance along the run that is not its own error.

    NaN where unknown.
    """
    objective = known(history.objective)
    if objective.size < LEAST_ESTIMATES:
        return float("nan")
    error = known_mean(history.standard_error**2)
    # A run that stood still has no variance at all, and no signal.
    variance = max(float(objective.var(ddof=1, dtype=np.float64)), 1e-300)
    return 1 - error / variance
