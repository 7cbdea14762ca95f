"""The record of a run: an entry for each estimate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from lejax._info import Info


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
    beta_used: np.ndarray
    certified: np.ndarray

    def __repr__(self) -> str:
        if not isinstance(self.objective, np.ndarray):
            return f"History{tuple.__repr__(self)}"
        return (
            f"History of {self.objective.size:,} estimates: {', '.join(self._fields)}"
        )


def record(info: Info, **others: Any) -> History:
    """The scalars of one `Info`, while traced. Arrays of the size of x are left out."""
    kept = {name: getattr(info, name) for name in History._fields if name not in others}
    return History(**kept, **others)


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
