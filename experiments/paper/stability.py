"""The abstract's claim: is the test error more stable with a regularised loss?

The network is the paper's one of "moderate size", 784-10, for which the best Gaussian
approximations can be computed well. An epoch of SGD, then each method, ten seeds, all
test images. Instability late in training is measured by the spread over seeds, and by
the steps of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats

from experiments.common import plotting, results
from experiments.common.command import execute
from experiments.common.methods import Column, Method, Run
from experiments.common.options import Options
from experiments.common.study import Curves, dataset, study

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


def draw(
    options: Options, found: Mapping[str, Curves], table: Mapping[str, Any]
) -> None:
    """The curves that stay near SGD's, and both ratios with their intervals."""
    path = options.output / "stability.png"
    with plotting.figure(path, 1, 3, figsize=(15.5, 4.6)) as (_, axes):
        curves_panel, *panels = axes[0]
        seeds, last = found["SGD"].accuracy.shape[1], found["SGD"].updates[-1]
        sgd = found["SGD"].accuracy[0].mean(0)
        plotting.tidy(
            curves_panel,
            title=f"784-10 after an epoch of SGD, {seeds} seeds",
            xlabel="updates after the switch",
            ylabel="test accuracy",
            xlim=(0, last),
            ylim=(sgd[0] - 0.02, sgd.max() + 0.008),
        )
        names = []
        for label, curves in found.items():
            color, ls = plotting.style(label)
            mean = plotting.curve(
                curves_panel, curves.updates, curves.accuracy[0], color, ls
            )
            end = float(np.clip(mean[-1], *curves_panel.get_ylim()))
            names.append((end, f"{label} {mean[-1]:.3f}", color))
        plotting.label_ends(curves_panel, names, last)
        titles = {
            "ratio_of_steps": "steps of a curve, against SGD's",
            "ratio_of_seeds": "spread over seeds, against SGD's",
        }
        others = list(found)[:0:-1]
        for panel, (ratio, title) in zip(panels, titles.items(), strict=True):
            for height, label in enumerate(others):
                value, low, high = table[label][ratio]
                color, ls = plotting.style(label)
                panel.plot([low, high], [height, height], color=color, ls=ls, lw=2)
                panel.plot(value, height, "o", color=color)
                panel.annotate(
                    f"{value:.2f}", (value, height + 0.18), ha="center", color=color
                )
            panel.axvline(1, color=plotting.COLORS["SGD"], lw=1)
            plotting.tidy(panel, title=title, xscale="log", ylim=(-0.5, len(others)))
            panel.set_yticks(range(len(others)), others)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("")
        panels[1].set_yticklabels([])


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

    draw(options, found, table)


if __name__ == "__main__":
    execute(main, __doc__)
