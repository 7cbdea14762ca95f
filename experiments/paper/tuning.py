"""Learning rates for the rest of the study, chosen on a validation split.

The last sixth of the training images is held out, and no test image is used. The grids
are small: a plain rate, momentum or Adam, constant or falling by half a cosine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

from experiments.common import results
from experiments.common.command import execute
from experiments.common.methods import Method, Outer, Run
from experiments.common.options import Options
from experiments.common.study import study

# An update of the fastest lejax row takes at least this many plain steps (Table 6.2).
STEPS_IN_THE_SAME_TIME = 100
UPDATES = 500

Grid = dict[Outer, tuple[float, ...]]
PLAIN: Grid = {
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "momentum": (0.01, 0.03, 0.1, 0.3),
    "adam": (0.001, 0.003, 0.01, 0.03),
}
LONG: Grid = {
    "sgd": (0.03, 0.1, 0.3),
    "momentum": (0.01, 0.03, 0.1),
    "adam": (0.0003, 0.001, 0.003),
}
# Sampled gradients cost a hundred times as much, so their grid is smaller.
SAMPLED: Grid = {"momentum": PLAIN["momentum"]}
SAMPLERS: tuple[Method, ...] = ("IS", "SGLD", "HR")
NAMES: dict[Outer, str] = {"sgd": "SGD", "momentum": "momentum", "adam": "Adam"}

HELD_OUT: dict[str, Any] = {"evaluations": 5, "test_images": 10_000, "validation": True}
# The paper's settings again, for the runs on the whole training set.
TESTED: dict[str, Any] = {field: getattr(Run("SGD"), field) for field in HELD_OUT}


def rule(run: Run) -> str:
    """The optimizer behind the gradient, in words."""
    return f"{run.outer}{', cosine' if run.cosine else ''}"


def candidates(options: Options) -> dict[str, list[Run]]:
    """The runs that are compared for each row of Table 6.1."""
    updates = options.updates or UPDATES

    def of(run: Run, grid: Grid, cosines: Iterable[bool] = (True,)) -> list[Run]:
        return [
            dataclasses.replace(run, outer=outer, cosine=cosine, learning_rates=rates)
            for outer, rates in grid.items()
            for cosine in cosines
        ]

    held_out = Run("SGD", updates=updates, **HELD_OUT)
    longer = dataclasses.replace(held_out, updates=STEPS_IN_THE_SAME_TIME * updates)
    found = {}
    for method in SAMPLERS:
        run = dataclasses.replace(held_out, method=method, column="lejax")
        found[f"{method}, lejax"] = of(run, SAMPLED)
    for outer, name in NAMES.items():
        found[f"{name}, tuned"] = of(held_out, {outer: PLAIN[outer]}, (False, True))
    for outer, name in NAMES.items():
        found[f"{name}, equal time"] = of(longer, {outer: LONG[outer]})
    return found


class Choice(NamedTuple):
    """The best run of a row, on the whole training set, and its validation accuracy."""

    run: Run
    validation_accuracy: float


def choices(options: Options) -> dict[str, Choice]:
    """Train all candidates, and take the best of each row at the end."""
    of_rows = {
        f"{row}: {rule(run)}": (row, run)
        for row, of_row in candidates(options).items()
        for run in of_row
    }
    runs = {label: run for label, (_, run) in of_rows.items()}
    best: dict[str, Choice] = {}
    # The choice does not depend on the number of seeds of the study.
    options = dataclasses.replace(options, seeds=None)
    for label, curves in study("tuning", runs, options, seeds=1).items():
        row, run = of_rows[label]
        accuracies = curves.accuracy[:, :, -1].mean(1)
        at = int(accuracies.argmax())
        if row not in best or accuracies[at] > best[row].validation_accuracy:
            rates = (run.learning_rates or ())[at : at + 1]
            changed: dict[str, Any] = {"learning_rates": rates} | TESTED
            best[row] = Choice(
                dataclasses.replace(run, **changed), float(accuracies[at])
            )
    return best


def chosen(options: Options) -> dict[str, Run]:
    """The best run of each row of Table 6.1, for training on the whole training set."""
    return {row: choice.run for row, choice in choices(options).items()}


def main(options: Options) -> None:
    """Tune, print and keep the choice."""
    record = {}
    print("\nChosen on the validation split")
    for row, (run, accuracy) in choices(options).items():
        rate = (run.learning_rates or (0.0,))[0]
        print(f"  {row:<24}{rule(run):<18}rate {rate:<8g}{accuracy:.3f}")
        record[row] = {"rule": rule(run), "rate": rate, "accuracy": accuracy}
    results.add(options.output / "tuning.json", chosen=record)


if __name__ == "__main__":
    execute(main, __doc__)
