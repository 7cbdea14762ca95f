"""Objectives without a gradient: importance sampling against evolution strategies.

Every search is tuned by random search, on a validation split or on separate seeds, then
run from several seeds. Scores are compared at equal evaluations of the loss and at
equal seconds. The time of an update is measured in rounds with a turn of every search.
"""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from experiments.applications.gradient_free import table
from experiments.applications.gradient_free.runs import (
    TUNING_SEED,
    Config,
    Setting,
    best,
    candidates,
    family,
    points_of,
    problems_of,
    program,
    run,
    searchers_of,
    seconds_per_update,
    updates_of,
)
from experiments.common import results, workers


def tuned(config: Config, name: str, record: dict[str, Any], bar: Any, write: Any):
    """Try all candidates of a problem's searches that have not been tried."""
    chosen = searchers_of(problems_of(config)[name], config)
    known, tasks = record["tuning"].setdefault(name, {}), {}
    for searcher, of in chosen.items():
        found = known.setdefault(searcher, [])
        for trial, setting in enumerate(candidates(of, config.trials)):
            if trial < len(found) and found[trial] is not None:
                bar.update()
                continue
            found.extend([None] * (trial + 1 - len(found)))
            search = program(config, name, searcher, setting.population).search
            end = updates_of(config.evaluations / 3, search)
            tasks[f"{searcher}:{trial}"] = (
                *(config, name, searcher, setting, TUNING_SEED, [end], True),
            )
    if tasks:  # the times were of settings that may not be chosen now
        record["seconds"].pop(name, None)
    for label, scores in spread(config, tasks):
        searcher, _, trial = label.partition(":")
        setting = tasks[label][3]
        known[searcher][int(trial)] = {**setting._asdict(), "score": scores[-1]}
        write()
        bar.update()


def spread(config: Config, tasks: dict[str, Any]) -> Any:
    """Runs side by side, with a process for each core."""
    count = config.workers or (1 if config.quick else len(workers.cores()))
    return workers.spread(run, tasks, count, lambda updates: None)


def compare(config: Config) -> dict[str, Any]:
    """Tune, time and run, writing after each step; results that exist are kept."""
    path = config.output / f"gradient_free_{config.objective}.json"
    record = results.kept(path, config) or {}
    record = {k: record.get(k, {}) for k in ("tuning", "seconds", "runs")}
    names = list(problems_of(config))

    def write() -> None:
        results.write_json(path, config, **record)

    families = list(dict.fromkeys(family(name, config) for name in names))
    count = {
        name: len(searchers_of(problems_of(config)[name], config)) for name in names
    }
    total = sum(count[name] for name in families) * config.trials
    total += sum(count.values()) * config.seeds
    with tqdm(total=total, unit="run") as bar:
        for name in families:
            bar.set_description(f"tuning {name}")
            tuned(config, name, record, bar, write)
            chosen = {s: best(found) for s, found in record["tuning"][name].items()}
            if name not in record["seconds"]:
                record["seconds"][name] = seconds_per_update(config, name, chosen)
                write()
            for mine in (other for other in names if family(other, config) == name):
                bar.set_description(mine)
                _run_all(config, mine, chosen, record, bar, write)
    return record


def _run_all(
    config: Config,
    name: str,
    chosen: dict[str, Setting],
    record: dict[str, Any],
    bar: Any,
    write: Any,
) -> None:
    """Run all searches from all seeds on one problem."""
    of_problem, tasks = record["runs"].setdefault(name, {}), {}
    like = family(name, config)
    for searcher, setting in chosen.items():
        search = program(config, like, searcher, setting.population).search
        points = points_of(config, search, record["seconds"][like][searcher])
        head = {
            **setting._asdict(),
            "evaluations_per_update": search.evaluations,
            "updates": points,
        }
        # Runs with another setting or length are replaced.
        if not head.items() <= of_problem.get(searcher, {}).items():
            of_problem[searcher] = head | {"scores": {}}
        kept = of_problem[searcher]
        for seed in range(config.seeds):
            if str(seed) in kept["scores"]:
                bar.update()
                continue
            tasks[f"{searcher}:{seed}"] = (
                *(config, name, searcher, setting, seed, points, False),
            )
    for label, scores in spread(config, tasks):
        searcher, _, seed = label.partition(":")
        of_problem[searcher]["scores"][seed] = scores
        write()
        bar.update()


def main(config: Config) -> None:
    """Compare, print and plot."""
    config = config.complete()
    record = compare(config)
    print(f"{results.device_name()}; {config.seeds} seeds, mean ± 95 % interval")
    found = {}
    for name, problem in problems_of(config).items():
        seconds = record["seconds"][family(name, config)]
        runs = table.curves(record["runs"][name], seconds, problem.level)
        print(f"\n{name}: {problem.measure}, level {problem.level:g}\n")
        print(table.table(runs, config.evaluations, config.seconds))
        found[name, problem.measure] = runs
    table.draw(
        config.output / f"gradient_free_{config.objective}.png",
        found,
        config.evaluations,
        config.seconds,
    )
