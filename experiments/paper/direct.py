"""One seed of Table 6.1 by plain estimators in the full space, as a check.

The curves "as written" and "as published" have the distribution of the paper's
processes, but are sampled by the reduction. Here all parameters are drawn, which is
slow: half an hour and more.
"""

from __future__ import annotations

import dataclasses

from experiments.common import results, tables
from experiments.common.command import execute
from experiments.common.options import Options
from experiments.common.study import study
from experiments.paper.table_6_1 import paper_runs

METHODS = ("IS", "HR", "SGLD", "SGLD, published")


def main(options: Options) -> None:
    """Run what is missing, and print both forms at the five checkpoints."""
    in_law = {label: paper_runs(options)[label] for label in METHODS}
    direct = {
        f"{label}, direct": dataclasses.replace(run, direct=True)
        for label, run in in_law.items()
    }
    found = study("direct", in_law | direct, options, seeds=1)
    print("\nTest accuracy of seed 0, in law and by draws in all dimensions")
    table = tables.print_checkpoints(found)
    results.add(options.output / "direct.json", table=table)


if __name__ == "__main__":
    execute(main, __doc__)
