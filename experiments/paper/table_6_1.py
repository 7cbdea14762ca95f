"""Table 6.1 and Figure 6.1: SGD, IS, SGLD and HR from the same random weights.

Three columns: the paper's formulas as written; as published, with noise whose standard
deviation is the number that the formulas call its variance; and lejax at the same J,
batches and number of updates, with SGD, momentum and Adam tuned on the same split.
"""

from __future__ import annotations

import numpy as np

from experiments.common import plotting, results, tables
from experiments.common.command import execute
from experiments.common.methods import Run
from experiments.common.options import Options
from experiments.common.study import Curves, study
from experiments.paper import tuning

# Test accuracy after 100, …, 500 updates.
PAPER = {
    "SGD": [0.75, 0.80, 0.85, 0.87, 0.87],
    "IS": [0.27, 0.45, 0.54, 0.57, 0.65],
    "SGLD": [0.72, 0.81, 0.84, 0.86, 0.88],
    "HR": [0.52, 0.64, 0.70, 0.73, 0.76],
}
PUBLISHED = {f"{method}, published": row for method, row in PAPER.items()}


def paper_runs(options: Options) -> dict[str, Run]:
    """The four methods as written, and the three with noise as published."""
    updates = options.updates or tuning.UPDATES
    return {
        "SGD": Run("SGD", updates=updates),
        "IS": Run("IS", updates=updates),
        "SGLD": Run("SGLD", updates=updates),
        "HR": Run("HR", updates=updates),
        "IS, published": Run("IS", "as published", updates=updates),
        "SGLD, published": Run("SGLD", "as published", updates=updates),
        "HR, published": Run("HR", "as published", updates=updates),
    }


def share_of_falls(curves: Curves) -> float:
    """The share of steps between two evaluations in which the test accuracy falls."""
    return float((np.diff(curves.accuracy[0], axis=-1) < 0).mean())


def main(options: Options) -> None:
    """Train, print, plot."""
    runs = paper_runs(options) | tuning.chosen(options)
    found = study("table_6_1", runs, options, seeds=5)
    print(f"\nTable 6.1: test accuracy, {found['SGD'].accuracy.shape[1]} seeds")
    same_study = options.updates in (None, tuning.UPDATES) and not options.quick
    paper = PAPER | PUBLISHED if same_study else None
    table = tables.print_checkpoints(found, paper)

    print("\nSection 6.2")
    par = tables.print_difference(
        "Is SGLD, as published, on a par with SGD per update?",
        found["SGLD, published"],
        found["SGD"],
    )
    falls = {label: share_of_falls(curves) for label, curves in found.items()}
    print("Share of intervals between evaluations in which test accuracy falls")
    for label, share in falls.items():
        print(f"    {label:<28}{share:.2f}")
    results.add(
        options.output / "table_6_1.json",
        table=table,
        sgld_against_sgd=par,
        share_of_falls=falls,
    )

    columns = {"as written": "", "as published": ", published", "lejax": ", lejax"}
    with plotting.figure(options.output / "figure_6_1.png", 1, 3) as (_, axes):
        for panel, (column, suffix) in zip(axes[0], columns.items(), strict=True):
            rows = {
                method: found[method + suffix if method + suffix in found else method]
                for method in PAPER
            }
            if column == "lejax":
                rows["SGD"] = found["SGD, tuned"]
            plotting.accuracies(panel, rows, column)
        axes[0, 0].set_ylabel("test accuracy")


if __name__ == "__main__":
    execute(main, __doc__)
