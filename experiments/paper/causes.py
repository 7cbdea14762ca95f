"""Possible causes for the rows of Table 6.1 that differ from the published ones.

One change at a time: the activation and initialisation, which the paper does not state;
the loss summed over the batch (β = 20) instead of averaged; fewer samples. The other
reading of the scale of the noise is a column of Table 6.1 itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments.common import results, tables
from experiments.common.command import execute
from experiments.common.options import Options
from experiments.common.study import study
from experiments.paper.table_6_1 import PAPER, paper_runs

RELU: dict[str, Any] = {"activation": "relu"}
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "IS": {
        "loss summed over the batch": {"beta": 20.0},
        "J = 100": {"samples": 100},
        "relu, LeCun": RELU | {"initialization": "lecun"},
    },
    "HR": {
        "relu, LeCun": RELU | {"initialization": "lecun"},
        "relu, He": RELU | {"initialization": "he"},
    },
    "SGD": {
        "relu, LeCun": RELU | {"initialization": "lecun"},
        "relu, He": RELU | {"initialization": "he"},
    },
}


def main(options: Options) -> None:
    """Train with each change, and print the difference to the published row."""
    bases = paper_runs(options)
    runs = {}
    for method, changes in CHANGES.items():
        runs[method] = bases[method]
        if f"{method}, published" in bases:
            label = f"{method}, standard deviations"
            runs[label] = bases[f"{method}, published"]
        for change, fields in changes.items():
            runs[f"{method}, {change}"] = dataclasses.replace(bases[method], **fields)
    found = study("causes", runs, options, seeds=2)
    seeds = found["SGD"].accuracy.shape[1]
    print(f"\nTable 6.1 with one thing changed, {seeds} seeds, beside the paper")
    paper = {label: PAPER[label.partition(",")[0]] for label in found}
    table = tables.print_checkpoints(found, paper)
    print("Root-mean-square distance to the published row")
    distances = {
        label: float(np.sqrt(np.mean(np.square(row["gap"]))))
        for label, row in table.items()
    }
    for label, distance in distances.items():
        print(f"    {label:<36}{distance:.3f}")
    results.add(options.output / "causes.json", table=table, distances=distances)


if __name__ == "__main__":
    execute(main, __doc__)
