"""Tables of accuracies: mean, 95 % interval, and the paper's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.plotting import interval
from experiments.common.study import Curves


def checkpoints(curves: Curves) -> tuple[np.ndarray, np.ndarray]:
    """At each fifth of the updates: their number, and the accuracies (seeds, 5)."""
    fifth = (len(curves.updates) - 1) // 5
    return curves.updates[fifth::fifth], curves.accuracy[0][:, fifth::fifth]


def shown(mean: float, width: float) -> str:
    """A mean with its 95 % interval, if there is one."""
    return f"{mean:.3f}" + ("      " if np.isnan(width) else f" ±{width:.3f}")


def print_checkpoints(
    found: Mapping[str, Curves], paper: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Any]:
    """Prints a row for each run, with the paper's values if it has the run.

    Args:
        found: the runs.
        paper: published accuracies at the five checkpoints of 500 updates on MNIST.

    Returns:
        The same values as a record.
    """
    row = "{:<42}{:>10}" + "{:>15}" * 5
    some = next(iter(found.values()))
    updates, _ = checkpoints(some)
    print(row.format("updates", "f an upd.", *updates))
    record = {}
    for label, curves in found.items():
        at, accuracy = checkpoints(curves)
        mean, width = interval(accuracy)
        cells = [shown(m, w) for m, w in zip(mean, width, strict=True)]
        longer = "" if (at == updates).all() else f" ({at[-1]} updates)"
        print(row.format(label + longer, curves.evaluations_per_update, *cells))
        record[label] = {
            "evaluations_per_update": curves.evaluations_per_update,
            "updates": at.tolist(),
            "mean": mean.round(4).tolist(),
            "half_width": None if np.isnan(width).any() else width.round(4).tolist(),
        }
        if paper and label in paper:
            gap = np.asarray(paper[label]) - mean
            print(row.format("  paper", "", *(f"{p:.2f}      " for p in paper[label])))
            print(row.format("  paper - here", "", *(f"{g:+.3f}      " for g in gap)))
            record[label] |= {"paper": paper[label], "gap": gap.round(4).tolist()}
    return record


def difference(one: Curves, other: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the paired difference at the checkpoints, and its 95 % interval."""
    return interval(checkpoints(one)[1] - checkpoints(other)[1])


def print_difference(question: str, one: Curves, other: Curves) -> dict[str, Any]:
    """Prints the paired difference of two runs on the same seeds, and a verdict."""
    mean, width = difference(one, other)
    cells = [shown(m, w) for m, w in zip(mean, width, strict=True)]
    apart = ~np.isnan(width) & (np.abs(mean) > width)
    print(f"{question}\n    difference {'  '.join(cells)}")
    print(f"    different from 0 at {apart.sum()} of {len(apart)} checkpoints")
    return {
        "question": question,
        "difference": mean.round(4).tolist(),
        "half_width": None if np.isnan(width).any() else width.round(4).tolist(),
        "apart": apart.tolist(),
    }
