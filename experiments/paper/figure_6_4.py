"""Figure 6.4: the 784-10 network, importance sampling and SGLD, three ranges of τ."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from experiments.common import plotting, results
from experiments.common.command import execute
from experiments.common.methods import Column, Method, Run
from experiments.common.options import Options
from experiments.common.study import study

RANGES = {
    "small τ": (0.001, 0.002, 0.004, 0.007, 0.01),
    "middle τ": (0.01, 0.02, 0.04, 0.07, 0.1),
    "large τ": (0.1, 0.2, 0.4, 0.7, 1.0),
}
ROWS: dict[str, tuple[Method, Column]] = {
    "SGLD, as written": ("SGLD", "as written"),
    "SGLD, as published": ("SGLD", "as published"),
    "SGLD, lejax": ("SGLD", "lejax"),
    "IS, as written": ("IS", "as written"),
    "IS, lejax": ("IS", "lejax"),
}


def main(options: Options) -> None:
    """Train at all τ at once, print the ends, plot a panel for each range."""
    updates = options.updates or 300
    taus = tuple(sorted({tau for taus in RANGES.values() for tau in taus}))
    runs = {
        row: Run(method, column, tau=taus, hidden=0, updates=updates)
        for row, (method, column) in ROWS.items()
    }
    found = study("figure_6_4", runs, options, seeds=3)
    print(f"\nFigure 6.4: test accuracy after {updates} updates, by τ")
    ends: dict[str, dict[str, list[float]]] = {}
    for label, curves in found.items():
        mean, width = plotting.interval(curves.accuracy[:, :, -1].T)
        ends[label] = {
            "tau": list(curves.run.tau),
            "mean": mean.round(4).tolist(),
            "half_width": np.nan_to_num(width).round(4).tolist(),
        }
        of_tau = dict(zip(taus, zip(mean, width, strict=True), strict=True))
        for part, some in RANGES.items():
            cells = "  ".join("{:g}: {:.2f}±{:.2f}".format(t, *of_tau[t]) for t in some)
            print(f"{label + ', ' + part:<30}{cells}")
    results.add(options.output / "figure_6_4.json", table=ends)

    shades = mpl.colormaps["viridis"](np.linspace(0.85, 0.05, 5))
    path = options.output / "figure_6_4.png"
    with plotting.figure(path, len(ROWS), 3, figsize=(12.5, 13.5)) as (_, axes):
        for panels, row in zip(axes, ROWS, strict=True):
            for panel, part in zip(panels, RANGES, strict=True):
                of = found[row]
                lines = [
                    (of.updates, of.accuracy[taus.index(tau)], f"{tau:g}", shade)
                    for tau, shade in zip(RANGES[part], shades, strict=True)
                ]
                plotting.named_curves(panel, lines, title=f"{row}, {part}")
            panels[0].set_ylabel("test accuracy")
        for panel in axes[-1]:
            panel.set_xlabel("updates")


if __name__ == "__main__":
    execute(main, __doc__)
