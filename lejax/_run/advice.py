"""What a run's history says against its settings, and which knob to turn."""

from __future__ import annotations

from collections.abc import Iterator

from lejax._info import TRUSTED_PARETO_K, TRUSTED_SAMPLE_SIZE
from lejax._run.history import History, known_mean, signal_of
from lejax._run.stopping import ALL, FAILED_UPDATES
from lejax._samplers.sampler import Sampler

# Updates average noise, some tens of them; less signal than this they do not find.
LEAST_SIGNAL = 0.1


def advice(history: History, sampler: Sampler) -> Iterator[str]:
    """One sentence and its mend for each thing that is wrong.

    A field that the sampler cannot estimate says nothing.
    """
    failing = history.nonfinite_fraction > ALL
    nothing = (failing | (history.effective_sample_size == 0))[-FAILED_UPDATES:]
    if nothing.all():
        mend = "start where value_fn is finite, or lower tau"
        if history.tau_used[-1] <= 0:
            mend = "tau has fallen to 0; let its schedule end above it"
        yield (
            f"no sample of {sampler.name} was effective in the last {nothing.size} "
            f"estimates, so nothing moved: {mend}."
        )
        return
    failed = known_mean(history.nonfinite_fraction)
    if failed > 0.5:
        yield (
            f"{failed:.0%} of the samples failed, as value_fn was not finite there; "
            "lower tau, or the step size of a chain, so that they stay nearer to the "
            "parameters."
        )
    effective = known_mean(history.effective_sample_size)
    # Heat weighs its draws alike: two of them may do.
    if sampler.regularization != "heat" and effective < TRUSTED_SAMPLE_SIZE:
        yield (
            f"{effective:.1f} samples were effective in an update, on average, below "
            f"{TRUSTED_SAMPLE_SIZE}: the estimates follow a few of them; raise "
            f"num_samples of {sampler.name}, or lower beta or tau."
        )
    shape = known_mean(history.pareto_k)
    # Where few are effective, that has been said.
    if shape > TRUSTED_PARETO_K and effective >= TRUSTED_SAMPLE_SIZE:
        yield (
            f"the largest weights were seldom drawn (pareto_k {shape:.2f}, above "
            f"{TRUSTED_PARETO_K}): errors and effective samples promise too much, "
            f"however many these are; raise num_samples of {sampler.name}, or lower "
            "beta or tau."
        )
    signal = signal_of(history)
    if signal < LEAST_SIGNAL:
        yield (
            f"the run was mostly noise ({max(signal, 0):.0%} signal), unless it began "
            f"at a minimum; raise num_samples of {sampler.name}, or lower the rate of "
            "the optimizer."
        )
