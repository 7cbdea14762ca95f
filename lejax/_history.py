"""What a run keeps of every estimate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from lejax._info import Info


class History(NamedTuple):
    """One number for every estimate of a run, of the fields of `Info` of these names.

    Entry k is of the parameters after k updates.
    """

    objective: Any
    standard_error: Any
    effective_sample_size: Any
    num_evaluations: Any
    nonfinite_fraction: Any


def record(info: Info) -> History:
    """The scalars of one estimate: what has the size of the parameters is not kept."""
    return History(*(getattr(info, name) for name in History._fields))


def joined(parts: list[History]) -> History:
    """The histories of successive blocks as one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def known(values: np.ndarray) -> np.ndarray:
    """The values that say something: `unknown` is NaN, or the largest number."""
    return values[np.isfinite(values) & (values < np.finfo(values.dtype).max)]


def known_mean(values: np.ndarray) -> float:
    """The mean of the known values, NaN where there is none."""
    values = known(values)
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")
