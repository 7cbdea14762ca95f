"""What a run keeps of every estimate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np


class History(NamedTuple):
    """Arrays of one number for every estimate of a run: the fields of `Info`, and more.

    Entry k is of the parameters after k updates. `squared_norm` is |δ̂|², which goes
    with `squared_error`. `certified` says whether the update made there was sure to
    lower the local entropy of its batch, by `certificate`.
    """

    objective: np.ndarray
    standard_error: np.ndarray
    effective_sample_size: np.ndarray
    num_evaluations: np.ndarray
    nonfinite_fraction: np.ndarray
    squared_error: np.ndarray
    squared_norm: np.ndarray
    signal: np.ndarray
    pareto_k: np.ndarray
    tau_used: np.ndarray
    certified: np.ndarray


def record(info: Any, squared_norm: Any, certified: Any) -> History:
    """The scalars of one `Info`, traced still: what is as large as x is not kept."""
    return History(
        objective=info.objective,
        standard_error=info.standard_error,
        effective_sample_size=info.effective_sample_size,
        num_evaluations=info.num_evaluations,
        nonfinite_fraction=info.nonfinite_fraction,
        squared_error=info.squared_error,
        squared_norm=squared_norm,
        signal=info.signal,
        pareto_k=info.pareto_k,
        tau_used=info.tau_used,
        certified=certified,
    )


def joined(parts: list[History]) -> History:
    """The histories of successive blocks as one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def known(values: np.ndarray) -> np.ndarray:
    """Which values say something: `unknown` is NaN, or the largest number."""
    return np.isfinite(values) & (values < np.finfo(values.dtype).max)


def known_mean(values: np.ndarray) -> float:
    """The mean of the known values, NaN where there is none."""
    values = values[known(values)]
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


def signal_of(history: History) -> float:
    """The share of all steps of a run that is no noise; NaN where it is unknown.

    Σ(|δ̂|² - V) / Σ|δ̂|²: a run that has arrived makes small steps, all noise, that are
    no reason to complain.
    """
    told = known(history.squared_error)
    noise = history.squared_error[told].astype(np.float64)
    square = history.squared_norm[told].sum(dtype=np.float64)
    return float(1 - noise.sum() / square) if square > 0 else float("nan")
