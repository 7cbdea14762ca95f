"""Advice from the history of a run: which setting to change."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from lejax._info import TRUSTED_PARETO_K, TRUSTED_SAMPLE_SIZE
from lejax._run.history import History, known, known_mean, signal_of
from lejax._run.stopping import ALL, FAILED_UPDATES
from lejax._samplers.sampler import Sampler

# Some tens of updates average noise out. Below this signal they do not.
LEAST_SIGNAL = 0.1
# Weights of so many effective samples hardly differ.
NEARLY_ALL = 0.95
# A variation of weights below this is rounding: no β makes equal losses differ.
EQUAL = 1e-5
# The quantile of effective sample sizes that stands for a run before its minimum.
WAY_THERE = 0.1
# The share of effective samples that is suggested instead.
GOOD_SHARE = 0.5
# A run whose last third fell by this share of its middle third has not slowed down.
STEADY = 0.8
# A fall of the objective by so many of its standard errors is progress.
PROGRESS = 3.0


def advice(history: History, sampler: Sampler, *, whole_step: bool) -> Iterator[str]:
    """A sentence, with its mend, for each setting that the history speaks against.

    With `whole_step` an update is the whole displacement, of length βτ|∇F|. A field
    that the sampler does not estimate gives no advice.
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
    if history.slope.size > 1 and (history.slope[:-1] > 0).all():
        yield (
            "every update went up the gradient: the optimizer lacks a descent step; "
            "end it with optax.scale(-learning_rate), or use optax.sgd or optax.adam."
        )
    failed = known_mean(history.nonfinite_fraction)
    if failed > 0.5:
        yield (
            f"{failed:.0%} of the samples failed, as value_fn was not finite there; "
            "lower tau, or the step size of a chain, so that they stay nearer to the "
            "parameters."
        )
    effective = known_mean(history.effective_sample_size)
    is_heat = sampler.regularization == "heat"
    # Heat weighs its draws alike: two of them may do.
    if not is_heat and effective < TRUSTED_SAMPLE_SIZE:
        yield (
            f"{effective:.1f} samples were effective in an update, on average, below "
            f"{TRUSTED_SAMPLE_SIZE}: the estimates follow a few of them; raise "
            f"num_samples of {sampler.name}, or lower beta or tau."
        )
    shape = known_mean(history.pareto_k)
    # If few are effective, that has been said.
    if shape > TRUSTED_PARETO_K and effective >= TRUSTED_SAMPLE_SIZE:
        yield (
            f"the largest weights were seldom drawn (pareto_k {shape:.2f}, above "
            f"{TRUSTED_PARETO_K}): errors and effective sample sizes are too "
            f"optimistic; raise num_samples of {sampler.name}, or lower beta or tau."
        )
    noisy = signal_of(history) < LEAST_SIGNAL and not _fell(history.objective)
    larger = _larger_beta(history, sampler)
    adapts = hasattr(sampler, "beta_share")
    if larger is not None and (noisy or whole_step):
        yield (
            f"{effective:,.0f} of {sampler.traits.weighted_samples:,} samples were "
            "effective in an update, so their weights hardly differed and updates were "
            f"small; raise beta, to about {larger:.2g}"
            + (
                f", or pass beta_share={GOOD_SHARE} to {sampler.name}."
                if adapts
                else "."
            )
        )
    elif whole_step and is_heat and _falls_steadily(history.objective):
        yield (
            "the objective fell steadily until the end: without an optimizer a step of "
            "heat is tau times the gradient, which is small; pass for example "
            "optimizer=optax.adam(1e-2)."
        )
    elif noisy:
        yield (
            f"the run was mostly noise ({max(signal_of(history), 0):.0%} signal), "
            f"unless it began at a minimum; raise num_samples of {sampler.name}, or "
            "lower the learning rate of the optimizer."
        )


def _thirds(objective: np.ndarray) -> list[np.ndarray]:
    """The known objectives in three parts, of two and more; none if there are fewer."""
    values = objective[known(objective)].astype(np.float64)
    return np.array_split(values, 3) if values.size >= 6 else []


def _fell(objective: np.ndarray) -> bool:
    """Whether the last third of the objectives is clearly below the first third."""
    if not (thirds := _thirds(objective)):
        return False
    first, _, last = thirds
    error = math.sqrt(first.var(ddof=1) / first.size + last.var(ddof=1) / last.size)
    return bool(first.mean() - last.mean() > PROGRESS * error)


def _falls_steadily(objective: np.ndarray) -> bool:
    """Whether the objective fell, and at the end as fast as at the beginning."""
    if not _fell(objective):
        return False
    first, middle, last = (part.mean() for part in _thirds(objective))
    return bool(middle - last > STEADY * (first - middle))


def _larger_beta(history: History, sampler: Sampler) -> float | None:
    """The β for a good share of effective samples, if nearly all were effective.

    For small β the squared coefficient of variation of the weights, J/ESS - 1, grows
    as β².
    """
    samples = sampler.traits.weighted_samples
    if samples is None:
        return None
    # At a minimum weights hardly differ at any β: what counts is the way there.
    effective = float(np.quantile(history.effective_sample_size, WAY_THERE))
    if not effective > NEARLY_ALL * samples:
        return None
    variation = samples / effective - 1
    if variation < EQUAL:
        return None
    return float(history.beta_used[0]) * math.sqrt((1 / GOOD_SHARE - 1) / variation)
