"""The abstract's claim: is the test error more stable with a regularised loss?

On the network of "moderate size", 784-10, where the best Gaussian approximations can
be computed well: an epoch of SGD, then each method, ten seeds, all test images. Two
measures of instability late in training: the spread over seeds, and a curve's steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats

from experiments import plotting, results
from experiments.methods import Column, Method, Run
from experiments.options import Options, parse
from experiments.study import Curves, dataset, study

ROWS: dict[str, tuple[Method, Column]] = {
    "SGD": ("SGD", "as written"),
    "IS": ("IS", "as written"),
    "SGLD": ("SGLD", "as written"),
    "HR": ("HR", "as written"),
    "SGLD, published": ("SGLD", "as published"),
    "IS, lejax": ("IS", "lejax"),
    "HR, lejax": ("HR", "lejax"),
}


def late(curves: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy at the end (seeds,), and its steps in the second half (seeds, steps)."""
    accuracy = curves.accuracy[0]
    return accuracy[:, -1], np.diff(accuracy[:, accuracy.shape[1] // 2 :], axis=1)


def against(sgd: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Ratio of deviations other/sgd, with a 95 % bootstrap interval over the seeds."""

    def ratio(rows: np.ndarray) -> Any:
        return other[rows].std() / max(sgd[rows].std(), 1e-12)

    rng = np.random.default_rng(0)
    n = len(sgd)
    drawn = [ratio(rng.integers(n, size=n)) for _ in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(ratio(np.arange(n))), float(low), float(high)


def main(options: Options) -> None:
    """Train, then compare the spreads with those of SGD."""
    epoch = len(dataset(options.data, options.data_dir).train_labels) // 20
    runs = {
        label: Run(
            method,
            column,
            hidden=0,
            sgd_updates=epoch,
            updates=options.updates or 500,
            test_images=10_000,
        )
        for label, (method, column) in ROWS.items()
    }
    found = study("stability", runs, options, seeds=10)
    ends, steps = zip(*(late(curves) for curves in found.values()), strict=True)
    print("\nLate in training: standard deviations, and their ratios to SGD's (95 %)")
    row = "{:<18}{:>10}{:>22}{:>10}{:>22}"
    print(row.format("", "at the end", "ratio", "of steps", "ratio"))
    table = {}
    for label, end, step in zip(found, ends, steps, strict=True):
        of_seeds, of_steps = against(ends[0], end), against(steps[0], step)
        low, high = (scipy.stats.chi2.ppf(q, len(end) - 1) for q in (0.025, 0.975))
        deviation = end.std(ddof=1)
        table[label] = {
            "mean": float(end.mean()),
            "deviation_of_seeds": float(deviation),
            "deviation_interval": [
                float(deviation * np.sqrt((len(end) - 1) / q)) for q in (high, low)
            ],
            "ratio_of_seeds": of_seeds,
            "deviation_of_steps": float(step.std()),
            "ratio_of_steps": of_steps,
        }
        shown = ["{:.2f} ({:.2f}-{:.2f})".format(*r) for r in (of_seeds, of_steps)]
        print(
            row.format(
                label, f"{deviation:.4f}", shown[0], f"{step.std():.4f}", shown[1]
            )
        )
    results.add(options.output / "stability.json", table=table)

    with plotting.figure(options.output / "stability.png", figsize=(8, 4.6)) as (
        _,
        axes,
    ):
        names = []
        for label, curves in found.items():
            method, _, variant = label.partition(", ")
            color = plotting.COLORS[method]
            ls = {"": "-", "published": "--", "lejax": ":"}[variant]
            mean = plotting.curve(
                axes[0, 0], curves.updates, curves.accuracy[0], color, ls
            )
            names.append((mean[-1], f"{label} {mean[-1]:.3f}", color))
        last = found["SGD"].updates[-1]
        plotting.tidy(
            axes[0, 0],
            title="784-10 network after an epoch of SGD, ten seeds",
            xlabel="updates after the switch",
            ylabel="test accuracy",
            xlim=(0, last),
        )
        plotting.label_ends(axes[0, 0], names, last)


if __name__ == "__main__":
    main(parse(__doc__))
