"""The rule of `lejax.search_rule` against pycma on the functions of BBOB.

24 functions, instances that were not used for choosing the rule, one run of each. All
searches begin at the same points with σ = 2. Restarts double the population. Each is
run with the box ±5 that BBOB states, and without it. The table
has the share of (run, target) pairs that were reached, f - min f ≤ 10, 1, .1, 10⁻³ and
10⁻⁶, after 100d and 1000d evaluations. No data are needed.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import lejax
from experiments.applications.search.problems import FUNCTIONS, Problems
from experiments.common import plotting, results

# The box that BBOB states. First starts lie in ±4, as all of pycma do; the rule's
# restarts lie in the box, or without it within ±4 of the first.
BOX = 5.0
SIGMA = 2.0
# Populations beyond 2⁵ times the first are not reached in these budgets.
DOUBLINGS = 5
MULTIPLES = (100, 1000)
COLORS = {
    "search_rule": "#111111",
    "search_rule, no box": "#2a78d6",
    "pycma": "#c8102e",
    "pycma, box": "#e67e22",
}
# Whom each is compared with: the same points to begin with, and the same box.
PEERS = {"search_rule": "pycma, box", "search_rule, no box": "pycma"}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared."""

    dimensions: tuple[int, ...] = (5, 10, 20)
    """Of the functions."""
    instances: tuple[int, ...] = (3, 4, 5)
    """Of each function; 1 and 2 were used for choosing."""
    functions: tuple[int, ...] = FUNCTIONS
    """By their numbers in BBOB."""
    multiple: int = 1000
    """Evaluations of a run, divided by its dimension."""
    methods: tuple[str, ...] = tuple(COLORS)
    """Those that are run."""
    output: Path = Path("results")
    """Folder of the results."""
    quick: bool = False
    """A run of seconds, to see that everything works: its figures mean nothing."""

    def complete(self) -> Config:
        """The settings of a quick run, if it is one."""
        if not self.quick:
            return self
        return dataclasses.replace(
            self, dimensions=(2,), instances=(3,), functions=(1, 8), multiple=100
        )


def by_rule(problems: Problems, *, box: bool) -> None:
    """Run `search_rule` on all problems at once."""
    first = lejax.search_rule().init(
        jax.random.key(0), jnp.zeros(problems.d, jnp.float64), SIGMA
    )
    bounds: dict[str, Any] = {"lower": -BOX, "upper": BOX} if box else {}
    largest = int(first.population) * 2**DOUBLINGS
    rule = lejax.search_rule(max_population=largest, **bounds)
    keys = jax.vmap(jax.random.key)(
        jnp.array([1000 * f + i for f, i in problems.labels])
    )
    init = jax.vmap(lambda key, mean: rule.init(key, mean, SIGMA))
    states = init(keys, jnp.asarray(problems.starts))
    ask, tell = jax.jit(jax.vmap(rule.ask)), jax.jit(jax.vmap(rule.tell))
    losses = np.full((len(problems.all), largest), np.nan)
    while (problems.spent < problems.budget).any():
        points, sizes = np.asarray(ask(states)), np.asarray(states.population)
        for number, size in enumerate(sizes):
            losses[number, :size] = problems.evaluate(number, points[number, :size])
        states = tell(states, losses)


def by_pycma(problems: Problems, *, box: bool) -> None:
    """Run pycma with restarts as in IPOP-CMA-ES."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib, moments, bounds
        import cma

        for number, (f, i) in enumerate(problems):
            rng = np.random.default_rng([1, f, i])
            start, restarts = problems.starts[number], 0
            options: dict[str, Any] = {"verbose": -9, "tolfun": 1e-11}
            if box:
                options["bounds"] = [-BOX, BOX]
            while problems.left(number):
                options["seed"] = 1000 * f + i + 100_000 * restarts + 1
                search = cma.CMAEvolutionStrategy(list(start), SIGMA, options)
                while problems.left(number) and not search.stop():
                    points = search.ask()
                    losses = problems.evaluate(number, np.array(points))
                    if np.isfinite(losses).all():
                        search.tell(points, list(losses))
                options["popsize"] = 2 * search.popsize
                start = rng.uniform(-4, 4, problems.d)
                restarts += 1


METHODS: dict[str, tuple[Callable[..., None], bool]] = {
    "search_rule": (by_rule, True),
    "search_rule, no box": (by_rule, False),
    "pycma": (by_pycma, False),
    "pycma, box": (by_pycma, True),
}


def budgets(config: Config, d: int) -> np.ndarray:
    """Where the curves have their points."""
    return d * np.logspace(0, np.log10(config.multiple), 61)


def measured(config: Config, d: int, name: str) -> dict[str, Any]:
    """Run a method on all functions in d dimensions."""
    problems = Problems(d, config.functions, config.instances, config.multiple * d)
    run, box = METHODS[name]
    begun = time.perf_counter()
    with jax.enable_x64(True):
        run(problems, box=box)
    shape = len(config.functions), len(config.instances)
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        # By function and instance, in fifths.
        "shares": {
            str(k): problems.named(k * d).reshape(shape).round(3).tolist()
            for k in MULTIPLES
            if k <= config.multiple
        },
        "curve": problems.curve(budgets(config, d)).round(4).tolist(),
    }


def difference(mine: Any, peer: Any) -> tuple[float, float]:
    """The mean difference in points, and half its 95 % interval.

    The functions are given; only the instances and draws of each are random.
    """
    each = 100 * (np.array(mine) - np.array(peer))
    if each.shape[1] == 1:
        return float(each.mean()), float("nan")
    error = np.sqrt((each.var(1, ddof=1) / each.shape[1]).sum()) / len(each)
    return float(each.mean()), float(1.96 * error)


def main(config: Config) -> None:
    """Run, print a table and plot; what is there is not done again."""
    config = config.complete()
    path = config.output / "search_bbob.json"
    found = (results.kept(path, config) or {}).get("dimensions", {})
    for d in config.dimensions:
        for name in config.methods:
            if name not in found.setdefault(str(d), {}):
                found[str(d)][name] = measured(config, d, name)
                print(
                    f"d = {d}, {name}: {found[str(d)][name]['seconds']} s", flush=True
                )
                results.write_json(path, config, dimensions=found)
    table(config, found)
    plot(config, found)


def table(config: Config, found: dict[str, Any]) -> None:
    """Print the shares in percent, and the differences from the peers."""
    multiples = [k for k in MULTIPLES if k <= config.multiple]
    columns = [(d, k) for d in map(str, config.dimensions) for k in multiples]
    print("| | " + " | ".join(f"d = {d}, {k}d" for d, k in columns) + " |")
    print("| --- " * (1 + len(columns)) + "|")
    for name in config.methods:
        cells = []
        for d, k in columns:
            shares = {m: of["shares"][str(k)] for m, of in found[d].items()}
            if name not in shares:  # interrupted
                cells.append("")
                continue
            cell = f"{100 * np.mean(shares[name]):.1f}"
            if (peer := PEERS.get(name)) in shares:
                mean, half = difference(shares[name], shares[peer])
                cell += f" ({mean:+.1f} ± {half:.1f})"
            cells.append(cell)
        print(f"| {name} | " + " | ".join(cells) + " |")


def plot(config: Config, found: dict[str, Any]) -> None:
    """The share of targets by evaluations, a panel for each dimension."""
    path = config.output / "search_bbob.png"
    with plotting.figure(path, columns=len(config.dimensions)) as (figure, axes):
        for panel, d in zip(axes.ravel(), config.dimensions, strict=True):
            x = np.log10(budgets(config, d) / d)
            for name in (m for m in config.methods if m in found[str(d)]):
                line = "-" if name in ("search_rule", "pycma") else "--"
                y = found[str(d)][name]["curve"]
                panel.plot(x, y, line, color=COLORS[name], lw=2, label=name)
            plotting.tidy(
                panel, title=f"d = {d}", xlim=(0, x[-1]), ylim=(0, 1),
                xlabel="log₁₀(evaluations / d)", ylabel="share of targets",
            )  # fmt: skip
        axes[0, 0].legend(frameon=False)
        functions, instances = len(config.functions), len(config.instances)
        figure.suptitle(f"BBOB, {functions} functions, {instances} instances")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
