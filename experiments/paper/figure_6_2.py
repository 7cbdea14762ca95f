"""Figure 6.2: SGD first, then each method; continued SGD is the control."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.common import plotting, results, tables
from experiments.common.command import execute
from experiments.common.methods import Method, Run
from experiments.common.options import Options
from experiments.common.plotting import COLORS
from experiments.common.study import study
from experiments.paper import tuning

METHODS: tuple[Method, ...] = ("SGD", "IS", "SGLD", "HR")


def main(options: Options) -> None:
    """Train, print, plot with the switch marked."""
    before, after = options.updates or tuning.UPDATES, 200
    switched: dict[str, Any] = {
        "sgd_updates": before,
        "updates": after,
        "evaluations": 20,
    }
    runs = {method: Run(method, first_step=2000, **switched) for method in METHODS}
    # By Table 6.1, only SGLD's published rows use standard deviations as variances.
    runs["SGLD, published"] = Run("SGLD", "as published", first_step=2000, **switched)
    best = tuning.chosen(options)
    for method in METHODS:
        row = f"{method}, {'tuned' if method == 'SGD' else 'lejax'}"
        step: dict[str, Any] = {} if method == "SGD" else {"first_step": 2000}
        runs[row] = dataclasses.replace(best[row], **switched, **step)
    runs["SGD before"] = Run("SGD", updates=before)
    found = study("figure_6_2", runs, options, seeds=2)
    first = found.pop("SGD before")
    print("\nFigure 6.2: test accuracy after the switch from SGD")
    table = tables.print_checkpoints(found)
    gains = [
        tables.print_difference(f"{label} minus SGD going on", curves, found[control])
        for label, curves in found.items()
        for control in ["SGD, tuned" if "lejax" in label else "SGD"]
        if not label.startswith("SGD")
    ]
    path = options.output / "figure_6_2.json"
    results.add(path, table=table, against_the_control=gains)

    panels = {
        "as written": METHODS,
        "as published": ("SGD", "SGLD, published"),
        "lejax": ("SGD, tuned", "IS, lejax", "SGLD, lejax", "HR, lejax"),
    }
    with plotting.figure(options.output / "figure_6_2.png", 1, 3) as (_, axes):
        for panel, (title, labels) in zip(axes[0], panels.items(), strict=True):
            plotting.curve(panel, first.updates, first.accuracy[0], COLORS["SGD"])
            ends = []
            last = first.updates[-1] + found["SGD"].updates[-1]
            for label in labels:
                curves, method = found[label], label.partition(",")[0]
                mean = plotting.curve(
                    panel,
                    first.updates[-1] + curves.updates,
                    curves.accuracy[0],
                    COLORS[method],
                )
                ends.append((mean[-1], f"{method} {mean[-1]:.2f}", COLORS[method]))
            panel.axvline(first.updates[-1], color="0.6", lw=1)
            plotting.tidy(
                panel, title=title, xlabel="updates", ylim=(0, 1), xlim=(0, last)
            )
            panel.annotate(
                "switch ", (first.updates[-1], 0.04), ha="right", color="0.4"
            )
            plotting.label_ends(panel, ends, last)
        axes[0, 0].set_ylabel("test accuracy")


if __name__ == "__main__":
    execute(main, __doc__)
