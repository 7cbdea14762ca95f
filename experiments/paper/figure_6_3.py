"""Figure 6.3: 10, 100 and 1000 samples per update; M = J = ⌊√S⌋ for Robbins-Monro."""

from __future__ import annotations

import dataclasses
import math

import matplotlib as mpl
import numpy as np

from experiments.common import plotting, results, tables
from experiments.common.command import execute
from experiments.common.methods import Run
from experiments.common.options import Options
from experiments.common.study import study
from experiments.paper import tuning

SAMPLES = (10, 100, 1000)
ROWS = {
    "as written": ("IS", "SGLD", "HR"),
    # By Table 6.1, only SGLD's published rows use standard deviations as variances.
    "as published": ("SGLD, published",),
    "lejax": ("IS, lejax", "SGLD, lejax", "HR, lejax"),
}


def main(options: Options) -> None:
    """Train, print, plot."""
    updates = options.updates or tuning.UPDATES
    best = tuning.chosen(options)
    bases = {
        "IS": Run("IS", updates=updates),
        "SGLD": Run("SGLD", updates=updates),
        "HR": Run("HR", updates=updates),
        "SGLD, published": Run("SGLD", "as published", updates=updates),
        **{label: best[label] for label in ROWS["lejax"]},
    }

    def with_samples(base: Run, samples: int) -> Run:
        if base.method == "HR":
            return dataclasses.replace(base, moves=math.isqrt(samples))
        return dataclasses.replace(base, samples=samples)

    runs = {
        f"{label}, S = {samples}": with_samples(base, samples)
        for label, base in bases.items()
        for samples in SAMPLES
    }
    found = study("figure_6_3", runs, options, seeds=2)
    print("\nFigure 6.3: test accuracy by the number S of samples per update")
    table = tables.print_checkpoints(found)
    # The fluctuation of a curve: the spread of its steps in the second half.
    restless = {
        label: float(np.diff(c.accuracy[0][:, c.accuracy.shape[-1] // 2 :]).std())
        for label, c in found.items()
    }
    print("Standard deviation of the steps between evaluations, second half")
    for label, value in restless.items():
        print(f"    {label:<28}{value:.4f}")
    path = options.output / "figure_6_3.json"
    results.add(path, table=table, restlessness=restless)

    shades = mpl.colormaps["viridis"](np.linspace(0.75, 0.1, len(SAMPLES)))
    with plotting.figure(options.output / "figure_6_3.png", 3, 3) as (_, axes):
        for panels, (title, labels) in zip(axes, ROWS.items(), strict=True):
            of_method = {label.partition(",")[0]: label for label in labels}
            for panel, method in zip(panels, ("IS", "SGLD", "HR"), strict=True):
                if method not in of_method:
                    panel.axis("off")
                    continue
                lines = []
                for samples, shade in zip(SAMPLES, shades, strict=True):
                    curves = found[f"{of_method[method]}, S = {samples}"]
                    name = f"S = {samples}"
                    lines.append((curves.updates, curves.accuracy[0], name, shade))
                plotting.named_curves(panel, lines, title=f"{method}, {title}")
            panels[0].set_ylabel("test accuracy")
        axes[1, 0].set_ylabel("")
        for panel in axes[-1]:
            panel.set_xlabel("updates")


if __name__ == "__main__":
    execute(main, __doc__)
