"""The record of a run: an entry for each estimate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np


class History(NamedTuple):
    """NumPy arrays with an entry for each estimate: fields of `Info`, and more.

    Entry k belongs to the parameters after k updates. `squared_norm` is |δ̂|², to
    compare with `squared_error`. `slope` is the inner product of gradient and update:
    below 0 the update descends. `certified` is 1 if `certificate` shows that the update
    lowers the local entropy of its batch, and 0 if not.
    """

    objective: np.ndarray
    standard_error: np.ndarray
    effective_sample_size: np.ndarray
    num_evaluations: np.ndarray
    nonfinite_fraction: np.ndarray
    squared_error: np.ndarray
    squared_norm: np.ndarray
    slope: np.ndarray
    signal: np.ndarray
    pareto_k: np.ndarray
    tau_used: np.ndarray
    certified: np.ndarray


def record(info: Any, squared_norm: Any, slope: Any, certified: Any) -> History:
    """The scalars of one `Info`, while traced. Arrays of the size of x are left out."""
    return History(
        objective=info.objective,
        standard_error=info.standard_error,
        effective_sample_size=info.effective_sample_size,
        num_evaluations=info.num_evaluations,
        nonfinite_fraction=info.nonfinite_fraction,
        squared_error=info.squared_error,
        squared_norm=squared_norm,
        slope=slope,
        signal=info.signal,
        pareto_k=info.pareto_k,
        tau_used=info.tau_used,
        certified=certified,
    )


def joined(parts: list[History]) -> History:
    """The histories of successive blocks, concatenated."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def known(values: np.ndarray) -> np.ndarray:
    """Which values were estimated: `unknown` is NaN, or the largest number."""
    return np.isfinite(values) & (values < np.finfo(values.dtype).max)


def known_mean(values: np.ndarray) -> float:
    """The mean of the known values; NaN if there are none."""
    values = values[known(values)]
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


def signal_of(history: History) -> float:
    """The share of all steps of a run that is not noise; NaN if it is unknown.

    It is Σ(|δ̂|² - V) / Σ|δ̂|². The small and noisy steps of a run that has converged
    therefore count little.
    """
    told = known(history.squared_error)
    noise = history.squared_error[told].astype(np.float64)
    square = history.squared_norm[told].sum(dtype=np.float64)
    return float(1 - noise.sum() / square) if square > 0 else float("nan")
