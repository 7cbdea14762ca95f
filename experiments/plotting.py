"""Plots: readable at the size of a README, labelled at the lines themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

# The paper's colours in their meaning, in shades that colour-blind readers tell apart.
COLORS = {"SGD": "#c8102e", "SGLD": "#2a78d6", "HR": "#3c9d4e", "IS": "#111111"}
LINES = {"": "-", "published": "--", "reduced": ":"}


def accuracy_curves(
    path: Path,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    title: str,
) -> None:
    """Accuracy against updates; each curve is (updates (T,), accuracy (seeds, T)).

    A variant `SGLD, …` has SGLD's colour and a line of its own kind. With several seeds
    the line is the mean, and the band spans the seeds.
    """
    mpl.use("agg")
    with plt.rc_context({"font.size": 12, "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
        ends = []
        for name, (updates, accuracy) in curves.items():
            method, _, variant = name.partition(", ")
            color, mean = COLORS[method], accuracy.mean(0)
            axes.plot(updates, mean, color=color, lw=2, ls=LINES[variant])
            if len(accuracy) > 1:
                axes.fill_between(
                    updates,
                    accuracy.min(0),
                    accuracy.max(0),
                    color=color,
                    alpha=0.15,
                    lw=0,
                )
            ends.append((mean[-1], updates[-1], name, color))
        lowest = -np.inf
        for height, last, name, color in sorted(ends):
            lowest = max(height, lowest + 0.055)  # labels do not overlap
            axes.annotate(
                f"{name}  {height:.2f}",
                (last, height),
                (last * 1.03, lowest),
                color=color,
                va="center",
                annotation_clip=False,
                arrowprops={
                    "arrowstyle": "-",
                    "color": color,
                    "lw": 0.6,
                    "relpos": (0, 0.5),
                },
            )
        axes.set(xlabel="parameter updates", title=title, ylim=(0, 1))
        axes.set_ylabel("test accuracy")
        axes.set_xlim(0, ends[0][1])
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)
    print(f"wrote {path}")
