"""Table 6.2: the time of an update, in SGD steps, with the paper's values."""

from __future__ import annotations

import statistics
from typing import Any

from experiments.common import hosts, results
from experiments.common.command import execute
from experiments.common.methods import Method, Run
from experiments.common.options import Options
from experiments.common.study import dataset, fitted
from experiments.common.training import train

# Seconds per update in the paper.
PAPER = {"SGD": 0.0032, "IS": 6.2504, "SGLD": 7.0599, "HR": 3.3053}
ROUNDS = 5


def runs(options: Options) -> dict[str, Run]:
    """One seed of each; the blocks of SGD are longer, as its steps are short."""
    few: dict[str, Any] = {
        "updates": options.updates or 3 * ROUNDS,
        "evaluations": ROUNDS,
    }
    found = {"SGD": Run("SGD", updates=1000 * ROUNDS, evaluations=ROUNDS)}
    methods: tuple[Method, ...] = ("IS", "SGLD", "HR")
    for method in methods:
        found[method] = Run(method, **few)
    for method in methods:
        found[f"{method}, lejax"] = Run(method, "lejax", **few)
    few["updates"] = options.updates or ROUNDS  # a second or two each
    for method in methods:
        found[f"{method}, direct"] = Run(method, direct=True, **few)
    return found


def main(options: Options) -> None:
    """Time all in one interleaved run, block by block, and print the ratios."""
    path = options.output / "table_6_2.json"
    chosen = dataset(options.data, options.data_dir)
    if (kept := hosts.of_first(results.kept(path, options, data=chosen.name))) is None:
        todo = {label: fitted(run, options) for label, run in runs(options).items()}
        started = {label: train(run, (0,), chosen) for label, run in todo.items()}
        seconds: dict[str, list[float]] = {label: [] for label in todo}
        for turn in zip(*started.values(), strict=True):
            for label, evaluation in zip(started, turn, strict=True):
                block = todo[label].updates // todo[label].evaluations
                if evaluation.updates:
                    seconds[label].append(evaluation.seconds / block)
        results.write_json(path, options, data=chosen.name, seconds_per_update=seconds)
        kept = {"seconds_per_update": seconds, "device": results.device_name()}
    seconds = kept["seconds_per_update"]
    print(f"\nTable 6.2: an update in SGD steps, one seed, on {kept['device']}")
    row = "{:<18}{:>12}{:>16}{:>20}{:>12}"
    print(row.format("", "seconds", "ratio to SGD", "least-largest", "paper"))
    ratios = {}
    for label, times in seconds.items():
        each = [t / s for t, s in zip(times, seconds["SGD"], strict=True)]
        ratios[label] = statistics.median(each)
        published = PAPER.get(label)
        print(
            row.format(
                label,
                f"{statistics.median(times):.5f}",
                f"{ratios[label]:.0f}",
                f"{min(each):.0f}-{max(each):.0f}",
                f"{published / PAPER['SGD']:.0f}" if published else "",
            )
        )
    results.add(path, ratios=ratios, paper=PAPER)


if __name__ == "__main__":
    execute(main, __doc__)
