"""SGLD of Table 6.1 with its chain kept between updates, and restarted in each."""

from __future__ import annotations

import dataclasses

from experiments.common import results, tables
from experiments.common.command import execute
from experiments.common.options import Options
from experiments.common.study import study
from experiments.paper.table_6_1 import paper_runs


def main(options: Options) -> None:
    """Train both kinds, as written and as published."""
    runs = {}
    for label in ("SGLD", "SGLD, published"):
        carried = paper_runs(options)[label]
        runs[label] = carried
        runs[f"{label}, restarted"] = dataclasses.replace(carried, warm_start=False)
    found = study("chains", runs, options, seeds=2)
    print(
        "\nTest accuracy, the chain carried over (the paper's way) and restarted at x"
    )
    table = tables.print_checkpoints(found)
    differences = [
        tables.print_difference(
            f"{label}: carried over minus restarted",
            found[label],
            found[f"{label}, restarted"],
        )
        for label in ("SGLD", "SGLD, published")
    ]
    path = options.output / "chains.json"
    results.add(path, table=table, differences=differences)


if __name__ == "__main__":
    execute(main, __doc__)
