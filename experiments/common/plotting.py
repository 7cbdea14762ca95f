"""Plots: readable at the size of a README, with labels at the lines themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from PIL import Image

# The paper's colours, in shades that colour-blind readers can distinguish.
COLORS = {"SGD": "#c8102e", "SGLD": "#2a78d6", "HR": "#3c9d4e", "IS": "#111111"}
# The line style by the column of the tables, as a label names it.
LINES = {"": "-", "published": "--", "lejax": ":"}


def style(label: str) -> tuple[str, str]:
    """Colour and line style of "method" or "method, variant"."""
    method, _, variant = label.partition(", ")
    return COLORS[method], LINES[variant]


@contextlib.contextmanager
def figure(
    path: Path, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple[Any, np.ndarray]]:
    """A figure and its axes (rows, columns), written to `path` at the end."""
    mpl.use("agg")
    all_colors = options.pop("all_colors", False)
    size = options.pop("figsize", (1.5 + 4.6 * columns, 0.6 + 3.6 * rows))
    with plt.rc_context({"font.size": 12, "axes.titlesize": 12}):
        drawn, axes = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, **options
        )
        yield drawn, axes
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=110)
        plt.close(drawn)
    # Line plots look the same in 256 colours, at a third of the bytes; maps do not.
    if not all_colors:
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(256).save(path, optimize=True)
    print(f"wrote {path}")


def interval(samples: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the leading axis, and the half width of its 95 % interval (Student's).

    For a single sample the width is NaN.
    """
    samples = np.asarray(samples, float)
    n = len(samples)
    if n == 1:
        return samples[0], np.full_like(samples[0], np.nan)
    error = samples.std(0, ddof=1) / np.sqrt(n)
    return samples.mean(0), scipy.stats.t.ppf(0.975, n - 1) * error


def shown(samples: Any, digits: int | None = None) -> str:
    """Mean ± half the 95 % interval, to these digits or two digits of the interval."""
    mean, width = (float(x) for x in interval(samples))
    if not width > 0:
        return f"{mean:.4g}" if digits is None else f"{mean:.{digits}f}"
    if digits is None:
        digits = max(0, 1 - int(np.floor(np.log10(width))))
    return f"{mean:.{digits}f} ± {width:.{digits}f}"


def curve(axes: Any, x: Any, samples: Any, color: Any, ls: str = "-", **line: Any):
    """The mean of `samples` (seeds, T) against `x` (T,), with its 95 % interval."""
    mean, width = interval(samples)
    axes.plot(x, mean, color=color, ls=ls, **{"lw": 2, **line})
    if not np.isnan(width).all():
        axes.fill_between(x, mean - width, mean + width, color=color, alpha=0.15, lw=0)
    return mean


def label_ends(axes: Any, ends: list[tuple[float, str, Any]], at: float) -> None:
    """Writes names at the ends of lines, at x = `at`: (height, name, colour) of each.

    Call it after setting the limits of the axes, which determine the distances between
    names.
    """
    low, high = axes.get_ylim()
    gap = 0.062 * (high - low) * 3.6 / max(axes.bbox.height / axes.figure.dpi, 1.0)
    ends = sorted(ends, key=lambda end: end[0])
    shown = [height for height, _, _ in ends]
    for i in range(1, len(shown)):
        shown[i] = max(shown[i], shown[i - 1] + gap)
    # If names reach above the axes, they and the names below move down.
    shown[-1] = min(shown[-1], high)
    for i in reversed(range(len(shown) - 1)):
        shown[i] = min(shown[i], shown[i + 1] - gap)
    left, right = axes.get_xlim()
    for (height, name, color), beside in zip(ends, shown, strict=True):
        axes.annotate(
            name,
            (at, height),
            (right + 0.03 * (right - left), beside),
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


def tidy(axes: Any, **settings: Any) -> None:
    """Sets a light horizontal grid and removes the box."""
    axes.set(**settings)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def named_curves(
    axes: Any, lines: Iterable[tuple[Any, Any, str, Any]], **settings: Any
) -> None:
    """Test accuracy against updates, with the name of every curve at its end.

    Args:
        axes: the axes to draw on.
        lines: (updates, accuracies (seeds, T), name, colour) of each; in a name {} is
            replaced by the accuracy at the end.
        settings: settings of the axes.
    """
    ends, last = [], 0
    for updates, samples, name, color in lines:
        mean = curve(axes, updates, samples, color)
        ends.append((mean[-1], name.format(mean[-1]), color))
        last = max(last, updates[-1])
    tidy(axes, ylim=(0, 1), xlim=(0, last), **settings)
    label_ends(axes, ends, last)


def accuracies(axes: Any, found: Mapping[str, Any], title: str) -> None:
    """Test accuracy against updates: a panel of curves with names at their ends.

    A label is "method" or "method, variant"; the method gives the colour.
    """
    lines = []
    for label, curves in found.items():
        color = COLORS[label.partition(",")[0]]
        lines.append((curves.updates, curves.accuracy[0], label + " {:.2f}", color))
    named_curves(axes, lines, title=title, xlabel="updates")
