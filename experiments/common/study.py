"""Runs of an experiment, kept on disk: runs that exist are not computed again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from experiments.common import data, hosts, results, workers
from experiments.common.checkpoints import Checkpoints
from experiments.common.methods import Controlled, Run
from experiments.common.options import Options
from experiments.common.training import train


class Curves(NamedTuple):
    """The results of a run.

    Attributes:
        run: its settings.
        updates: (T,), the numbers of updates at which the accuracy was evaluated.
        accuracy: (grid, seeds, T); the grid is over τ and the learning rate.
        seconds: the time of all updates of all members, without compilation.
        evaluations_per_update: evaluations of the loss or its gradient by each member.
        tau: (grid, seeds, T - 1), from the second evaluation on; None if τ follows from
            the settings.
    """

    run: Run
    updates: np.ndarray
    accuracy: np.ndarray
    seconds: float
    evaluations_per_update: int
    tau: np.ndarray | None


@functools.cache
def dataset(name: data.Name, data_dir: str | None) -> data.Dataset:
    """The data set, which is read and announced once."""
    return data.load(name, data_dir)


def fitted(run: Run, options: Options) -> Run:
    """The run with the options applied: smaller if quick, at least five evaluations."""
    if options.quick:
        run = dataclasses.replace(
            run,
            updates=min(run.updates, 10),
            sgd_updates=min(run.sgd_updates, 10),
            samples=max(run.samples // 50, 4),
            moves=max(run.moves // 10, 2),
            hidden=min(run.hidden, 8),
            test_images=min(run.test_images, 200),
        )
    if run.updates % run.evaluations:
        run = dataclasses.replace(run, evaluations=5)
    return run


def work(run: Run) -> int:
    """The approximate number of evaluations of a run."""
    grid = len(run.tau) * len(run.learning_rates or (None,))
    samples = {"SGD": 1, "HR": run.moves**2}.get(run.method, run.samples)
    return run.updates * grid * samples


def stored(options: Options, name: str) -> Iterator[dict[str, Any]]:
    """All runs in the output folder on that data set, of any experiment."""
    for path in sorted(options.output.glob("*.json")):
        record = results.read(path)
        if record.get("data") == name:
            # The runs of `flatness` are lists by budget, not runs of this study.
            runs = record.get("runs", {}).values()
            yield from (run for run in runs if "settings" in run)


def checkpoints_of(run: Run, seeds: int, options: Options) -> Checkpoints:
    """The checkpoints of a run without results yet."""
    return Checkpoints(
        options.checkpoints or options.output / "checkpoints",
        options.checkpoint_seconds,
        options.resume,
        run=results.settings(run),
        seeds=seeds,
        data=dataset(options.data, options.data_dir).name,
    )


def make(run: Run, seeds: int, options: Options, tick: workers.Tick) -> dict[str, Any]:
    """Trains, and returns the data of the curves; calls `tick` with updates made."""
    evaluations = []
    examples = dataset(options.data, options.data_dir)
    checkpoints = checkpoints_of(run, seeds, options)
    for evaluation in train(run, range(seeds), examples, checkpoints):
        tick(evaluation.updates - (evaluations[-1].updates if evaluations else 0))
        evaluations.append(evaluation)
    # An accuracy on at most 10,000 images has four digits.
    accuracy = np.stack([e.accuracy for e in evaluations], axis=-1).round(4)
    found = {
        "settings": results.settings(run),
        "seeds": seeds,
        "evaluations_per_update": evaluations[-1].evaluations_per_update,
        "seconds": round(sum(e.seconds for e in evaluations[1:]), 3),
        "updates": [e.updates for e in evaluations],
        "accuracy": accuracy.tolist(),
        "fingerprint": evaluations[-1].fingerprint,
    }
    if isinstance(run, Controlled):
        taus = np.stack([e.tau for e in evaluations[1:]], axis=-1)
        found["tau"] = [[[float(f"{t:.4g}") for t in s] for s in of] for of in taus]
    return found


def study(
    name: str, runs: Mapping[str, Run], options: Options, seeds: int
) -> dict[str, Curves]:
    """Loads or makes every run, and writes them all to `name`.json after each.

    Args:
        name: the name of the experiment.
        runs: the runs, by label.
        options: the options of the command line.
        seeds: the number of seeds of each run, if the options do not set it.

    Returns:
        The curves by label.
    """
    seeds = options.seeds or (min(seeds, 2) if options.quick else seeds)
    chosen = dataset(options.data, options.data_dir)
    runs = {label: fitted(run, options) for label, run in runs.items()}
    found = {
        label: record
        for record in stored(options, chosen.name)
        for label, run in runs.items()
        if record["settings"] == results.settings(run) and record["seeds"] >= seeds
    }
    found = hosts.of_first(found)
    missing = {label: run for label, run in runs.items() if label not in found}

    def write() -> None:
        ordered = {label: found[label] for label in runs if label in found}
        path = options.output / f"{name}.json"
        results.write_json(path, options, data=chosen.name, runs=ordered)

    count = workers.count(options)
    total = sum(run.updates for run in missing.values())
    with tqdm(total=total, unit="update", disable=not missing) as bar:
        bar.set_description(name)
        # The longest first, so that none of them is left for the end.
        ordered = sorted(missing.items(), key=lambda item: work(item[1]), reverse=True)
        tasks = {label: (run, seeds, options) for label, run in ordered}
        for label, record in workers.spread(make, tasks, count, bar.update):
            found[label] = record
            write()
            checkpoints_of(missing[label], seeds, options).remove()
    write()
    return {
        label: Curves(
            run,
            np.asarray(found[label]["updates"]),
            np.asarray(found[label]["accuracy"])[:, :seeds],
            found[label]["seconds"],
            found[label]["evaluations_per_update"],
            np.asarray(found[label]["tau"])[:, :seeds]
            if "tau" in found[label]
            else None,
        )
        for label, run in runs.items()
    }
