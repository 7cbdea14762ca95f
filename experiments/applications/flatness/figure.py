"""The figure of the comparison: accuracy under noise, and flatness against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator

from experiments.common import plotting

# Methods without gradients are dashed; smoothed losses are in colours, others in grey.
STYLES = {
    "SGD": ("0.6", "-", "o"),
    "momentum": ("0.35", "-", "s"),
    "Adam": ("0.0", "-", "^"),
    "SAM": ("#8e44ad", "-", "D"),
    "Entropy-SGD": ("#e67e22", "-", "v"),
    "sgld": ("#2a78d6", "-", "o"),
    "importance": ("#2a78d6", "--", "s"),
    "importance_by_example": ("#17becf", "--", "^"),
    "robbins_monro": ("#3c9d4e", "-", "o"),
    "pathwise": ("#9acd32", "-", "s"),
    "score_function": ("#c8102e", "--", "^"),
}


def draw(path: Path, runs: Mapping[str, Any], sigmas: Sequence[float]) -> None:
    """A row for each budget: accuracy under noise; test error against trace and λ₁."""
    with plotting.figure(path, len(runs), 3, figsize=(17, 4.4 * len(runs))) as (
        _,
        axes,
    ):
        for row, (budget, found) in zip(axes, runs.items(), strict=True):
            under_noise(row[0], found, sigmas, budget)
            flat_and_right(row[1], found, "trace", "trace of the Hessian")
            flat_and_right(row[2], found, "eigenvalues", "leading eigenvalue λ₁")


def under_noise(
    axes: Any, found: Mapping[str, Any], sigmas: Sequence[float], budget: str
) -> None:
    """Test accuracy against the standard deviation of the noise on all weights."""
    ends, at = [], range(len(sigmas))
    for name, of_name in found.items():
        color, ls, _ = STYLES[name]
        accuracy = [run["accuracy"] for run in of_name]
        mean = plotting.curve(axes, at, accuracy, color, ls)
        ends.append((float(mean[-1]), f"{name} {mean[-1]:.3f}", color))
    lowest = min(end for end, _, _ in ends)
    plotting.tidy(
        axes,
        title=budget,
        xlabel="σ of the noise on all weights",
        ylabel="test accuracy",
        xlim=(0, len(sigmas) - 1),
        ylim=(lowest - 0.02, 1),
    )
    axes.set_xticks(at, [f"{sigma:g}" for sigma in sigmas])
    plotting.label_ends(axes, ends, len(sigmas) - 1)


def flat_and_right(
    axes: Any, found: Mapping[str, Any], measure: str, name: str
) -> None:
    """Test error against a measure of flatness: a point with intervals per method."""
    for label, of_name in found.items():
        color, ls, marker = STYLES[label]
        x, dx = plotting.interval([run[measure][0] for run in of_name])
        y, dy = plotting.interval([1 - run["accuracy"][0] for run in of_name])
        # On logarithmic axes an interval that reaches 0 has no lower end.
        axes.errorbar(
            x,
            y,
            xerr=[[min(float(dx), 0.9 * float(x))], [float(dx)]],
            yerr=float(dy),
            color=color,
            marker=marker,
            mfc="white" if ls == "--" else color,
            ls="",
            label=label,
        )
    plotting.tidy(axes, xlabel=name, ylabel="test error", xscale="log", yscale="log")
    axes.set_title("flatter is to the left, better is lower", color="0.4")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6), numticks=20))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    if np.ptp(np.log10(axes.get_xlim())) > 2:
        axes.xaxis.set_major_locator(LogLocator())
