"""The runs of the comparison: a few compiled programs for all settings and seeds."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from experiments.applications.gradient_free.problem import Problem
from experiments.applications.gradient_free.search import Search, Searcher
from experiments.applications.gradient_free.searchers import searchers
from experiments.common import data

Objective = Literal["error_count", "spiking", "quantized", "perceptron", "swing_up"]
OF_IMAGES = ("error_count", "spiking", "quantized")
# Evaluations and seconds, such that a command ends within 45 minutes on 2 cores.
BUDGETS: dict[str, tuple[int, float]] = {
    "error_count": (3_000, 3.0),
    "spiking": (10_000, 10.0),
    "quantized": (10_000, 10.0),
    "perceptron": (10_000, 3.0),
    "swing_up": (20_000, 10.0),
}
ROUNDS, LEAST_TURN = 7, 0.03
POINTS = 40
TUNING_SEED = 1000
FEW = ("importance", "OpenES", "SPSA", "gradient")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    objective: tyro.conf.Positional[Objective]
    """The objective; each is a file of its name in this folder."""
    data: data.Name = "auto"
    """Data set of the objectives with images."""
    data_dir: str | None = None
    """Folder of tensorflow-datasets; by default its own."""
    seeds: int = 5
    """Number of seeds of every search: 0, 1, …"""
    samples: int = 100
    """Largest population, J or λ."""
    evaluations: int = 0
    """Evaluations of the loss, in the comparison at equal evaluations; a gradient
    counts as three. 0 is the objective's default."""
    seconds: float = 0.0
    """Seconds of every run, in the comparison at equal seconds; 0 is the default."""
    trials: int = 20
    """Number of settings of every search, tried with a third of the evaluations."""
    quick: bool = False
    """A run of seconds, as a test that everything works; its results mean nothing."""
    workers: int | None = None
    """Processes that share the runs; by default one for each core, or one if quick."""
    output: Path = Path("results")
    """Folder of the results. Results that exist are not computed again."""

    def complete(self) -> Config:
        """The settings with budgets filled in, and smaller if quick."""
        if not self.quick:
            evaluations, seconds = BUDGETS[self.objective]
            return dataclasses.replace(
                self,
                evaluations=self.evaluations or evaluations,
                seconds=self.seconds or seconds,
            )
        return dataclasses.replace(
            self, seeds=2, samples=8, evaluations=48, seconds=0.05, trials=1
        )


class Setting(NamedTuple):
    """The choice for a search: its population, and its numbers by name."""

    population: int
    numbers: dict[str, float]


class Program(NamedTuple):
    """The compiled parts of a search: `init`, `advance` and `score`."""

    search: Search
    init: Any
    advance: Any
    score: Any


@functools.cache
def problems(objective: str, name: data.Name, folder: str | None, quick: bool) -> Any:
    """The problems of an objective by name, made once in this process."""
    module = importlib.import_module(f"{__package__}.{objective}")
    dataset = data.load(name, folder) if objective in OF_IMAGES else None
    return module.problems(dataset, quick=quick)


def problems_of(config: Config) -> dict[str, Problem]:
    """The problems of the command."""
    return problems(config.objective, config.data, config.data_dir, config.quick)


def family(name: str, config: Config) -> str:
    """The problem whose settings this one takes; it has the same loss."""
    return problems_of(config)[name].settings_of or name


def searchers_of(problem: Problem, config: Config) -> dict[str, Searcher]:
    """The searches of a problem; a few of them if quick."""
    found = searchers(
        config.samples,
        by_example=problem.by_example,
        covariances=problem.covariances,
        scales=problem.scales,
        rates=problem.rates,
        reference=problem.reference is not None,
        weights=problem.weights,
    )
    return {name: of for name, of in found.items() if not config.quick or name in FEW}


@functools.cache
def program(config: Config, name: str, searcher: str, population: int) -> Program:
    """The program of a search, compiled once for all numbers, seeds and lengths."""
    problem = problems_of(config)[name]
    chosen = searchers_of(problem, config)[searcher]
    loss = {
        "objective": problem.loss,
        "weights": problem.loss_of_weights,
        "reference": problem.reference,
    }[chosen.uses]
    assert loss is not None
    search = chosen.make(loss, problem.params(0), population)

    def advance(
        state: Any, key: jax.Array, first: Any, stop: Any, data: Any, numbers: Any
    ) -> Any:
        def update(k: Any, state: Any) -> Any:
            batch, draws = jax.random.split(jax.random.fold_in(key, k))
            return search.update(state, draws, k, problem.batch(batch, data), numbers)

        return jax.lax.fori_loop(first, stop, update, state)

    def score(state: Any, data: Any) -> jax.Array:
        return problem.score(search.params(state), data)

    return Program(search, jax.jit(search.init), jax.jit(advance), jax.jit(score))


@functools.lru_cache(maxsize=2)
def data_of(config: Config, name: str, seed: int, validation: bool) -> Any:
    """The data of a problem, of which few are kept, as images are large."""
    return problems_of(config)[name].data(seed, validation)


def run(
    config: Config,
    name: str,
    searcher: str,
    setting: Setting,
    seed: int,
    points: list[int],
    validation: bool,
    tick: Any,
) -> list[float]:
    """The scores of a run after these numbers of updates."""
    del tick
    of = program(config, family(name, config), searcher, setting.population)
    held = data_of(config, name, seed, validation)
    problem, key = problems_of(config)[name], jax.random.key(seed)
    state = of.init(problem.params(seed), jax.random.fold_in(key, 1), setting.numbers)
    scores, done = [], 0
    for point in points:
        # A solved problem counts as solved from then on.
        if not (scores and problem.level >= 1 and scores[-1] >= problem.level):
            state = of.advance(state, key, done, point, held, setting.numbers)
            scores.append(round(float(of.score(state, held)), 5))
        else:
            scores.append(scores[-1])
        done = point
    return scores


def candidates(searcher: Searcher, trials: int) -> list[Setting]:
    """Random settings, the same at every call."""
    rng = np.random.default_rng(0)
    found = []
    for trial in range(trials):
        population = searcher.populations[trial % len(searcher.populations)]
        numbers = {
            name: float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")
            for name, (low, high) in searcher.ranges.items()
        }
        found.append(Setting(population, numbers))
    return found


def updates_of(evaluations: float, of: Search) -> int:
    """The number of updates for this many evaluations."""
    return max(1, round(evaluations / of.evaluations))


def best(found: list[dict[str, Any]]) -> Setting:
    """The setting of the highest score."""
    winner = max(found, key=lambda trial: np.nan_to_num(trial["score"], nan=-np.inf))
    return Setting(winner["population"], winner["numbers"])


def seconds_per_update(
    config: Config, name: str, chosen: dict[str, Setting]
) -> dict[str, float]:
    """Medians over rounds with one turn of each search."""
    held, key = data_of(config, name, TUNING_SEED, True), jax.random.key(0)
    start = problems_of(config)[name].params(0)
    turns = {}
    for searcher, setting in chosen.items():
        of = program(config, name, searcher, setting.population)
        state = of.init(start, key, setting.numbers)

        def turn(updates: int, of=of, state=state, numbers=setting.numbers) -> float:
            began = time.perf_counter()
            jax.block_until_ready(of.advance(state, key, 0, updates, held, numbers))
            return time.perf_counter() - began

        turn(1)  # compiles
        turns[searcher] = turn, max(1, round(LEAST_TURN / turn(1)))
    spent: dict[str, list[float]] = {searcher: [] for searcher in turns}
    for _ in range(ROUNDS):
        for searcher, (turn, updates) in turns.items():
            spent[searcher].append(turn(updates) / updates)
    return {searcher: float(np.median(of)) for searcher, of in spent.items()}


def points_of(config: Config, of: Search, seconds: float) -> list[int]:
    """The updates at which a run is scored: denser at first, and at the budgets."""
    ends = (
        updates_of(config.evaluations, of),
        max(1, round(config.seconds / seconds)),
    )
    grid = np.round(max(ends) * (np.arange(POINTS + 1) / POINTS) ** 2).astype(int)
    return sorted({*grid.tolist(), *ends})
