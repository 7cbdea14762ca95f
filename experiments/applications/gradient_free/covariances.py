"""The value of a learnt covariance on a badly scaled quadratic, by evaluations.

f(x) = ½xᵀAx in 50 dimensions; A has condition number 10⁴ and random axes. Importance
sampling with N(x, τI) at constant τ is compared with learnt covariances and CMA-ES. No
data are needed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

import lejax
from experiments.applications.gradient_free import table
from experiments.applications.gradient_free.evolution import cma_es, search_of
from experiments.applications.gradient_free.runs import best, candidates
from experiments.applications.gradient_free.search import Search, Searcher
from experiments.applications.gradient_free.searchers import (
    gaussian,
    local_entropy,
    optimizer,
)
from experiments.common import plotting, results

LEVELS = (1e-2, 1e-4, 1e-6, 1e-8)
POINTS = 500
COLORS = ("#c8102e", "#e67e22", "#8e44ad", "#3c9d4e", "#17becf", "#0b3d91", "0.5")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    dimensions: int = 50
    """Dimensions of the quadratic."""
    condition: float = 1e4
    """Ratio of its largest curvature to its smallest one, which is 1."""
    evaluations: int = 1_000_000
    """Evaluations of the loss in every run."""
    trials: int = 20
    """Number of settings of each method, tried with a tenth of the evaluations."""
    seeds: int = 5
    """Number of seeds of each method, 0, 1, …; settings are chosen on others."""
    output: Path = Path("results")
    """Folder of the results."""


def isotropic(loss: Any, params: Any, population: int) -> Search:
    """Algorithm 1 with covariance τI at constant τ: E_q[X] is the next x."""
    del params

    def chain(numbers: Any, key: jax.Array) -> Any:
        sampler = lejax.importance(population, beta_share=numbers["share"])
        tau = numbers["sigma"] ** 2
        head = lejax.local_entropy(sampler, tau, key=key, displacement=True)
        return optax.chain(head, optax.sgd(1.0))

    return optimizer(chain, loss, population)


SIGMA, SHARE = {"sigma": (0.001, 1.0)}, {"share": (0.05, 0.8)}
MIXING, RATE = {"mixing": (0.02, 0.5)}, {"rate": (0.001, 0.3)}
POPULATIONS = (20, 50, 100)
METHODS = {
    name: Searcher(make, ranges, POPULATIONS)
    for name, make, ranges in (
        ("τI", isotropic, SIGMA | SHARE),
        ("τI, Adam", local_entropy(credit=False), SIGMA | SHARE | RATE),
        ("scale", gaussian("scale"), SIGMA | SHARE | MIXING),
        ("diagonal", gaussian("diagonal"), SIGMA | SHARE | MIXING),
        ("low rank", gaussian("low_rank"), SIGMA | SHARE | MIXING),
        ("full", gaussian("full"), SIGMA | SHARE | MIXING),
        ("CMA-ES", search_of(cma_es), SIGMA),
    )
}


def quadratic(config: Config) -> Callable[..., jax.Array]:
    """The loss, with the arguments of a search."""
    rng = np.random.default_rng(0)
    size = config.dimensions
    axes = np.linalg.qr(rng.normal(size=(size, size)))[0]
    curvatures = config.condition ** np.linspace(0, 1, size)
    matrix = jnp.asarray((axes * curvatures) @ axes.T, jnp.float32)
    return lambda x, batch=None: x @ matrix @ x / 2


@functools.cache
def runner(config: Config, name: str, population: int, evaluations: int) -> Any:
    """`run(seed, numbers)`: f/f(x_0) at equally spaced numbers of evaluations."""
    loss, start = quadratic(config), jnp.ones(config.dimensions)
    search = METHODS[name].make(loss, start, population)
    updates = max(1, evaluations // population)
    each = max(1, updates // POINTS)

    def run(seed: Any, numbers: Any) -> jax.Array:
        key = jax.random.key(seed)
        first = search.init(start, jax.random.fold_in(key, 0), numbers)

        def block(state: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            def update(k: Any, state: Any) -> Any:
                draws = jax.random.fold_in(key, 1 + k)
                return search.update(state, draws, k, None, numbers)

            last = (number + 1) * each
            state = jax.lax.fori_loop(number * each, last, update, state)
            return state, loss(search.params(state), None) / loss(start, None)

        return jax.lax.scan(block, first, jnp.arange(updates // each))[1]

    return each * population, jax.jit(run)


def tuned(config: Config, name: str, bar: Any) -> dict[str, Any]:
    """The best random setting after a tenth of the evaluations, on two seeds."""
    found = []
    for setting in candidates(METHODS[name], config.trials):
        _, run = runner(config, name, setting.population, config.evaluations // 10)
        last = [float(run(1000 + seed, setting.numbers)[-1]) for seed in range(2)]
        found.append(
            setting._asdict()
            | {"score": -float(np.log10(np.maximum(last, 1e-30)).max())}
        )
        bar.update()
    return best(found)._asdict()


def main(config: Config) -> None:
    """Tune, run, print a table and plot; results that exist are kept."""
    path = config.output / "covariances.json"
    methods = (results.kept(path, config) or {}).get("methods", {})
    bar = tqdm(total=len(METHODS) * (config.trials + config.seeds), unit="run")
    for name in METHODS:
        bar.set_description(name)
        if name in methods:
            bar.update(config.trials + config.seeds)
            continue
        chosen = tuned(config, name, bar)
        each, run = runner(config, name, chosen["population"], config.evaluations)
        curves = []
        for seed in range(config.seeds):
            curves.append([float(f"{x:.3g}") for x in run(seed, chosen["numbers"])])
            bar.update()
        methods[name] = chosen | {"evaluations_per_point": each, "curves": curves}
        results.write_json(path, config, methods=methods)
    bar.close()
    print("| covariance | " + " | ".join(f"f/f_0 ≤ {x:g}" for x in LEVELS) + " |")
    print("| --- " * (1 + len(LEVELS)) + "|")
    for name, of in methods.items():
        print("| " + " | ".join([name, *(until(of, x) for x in LEVELS)]) + " |")
    plot(config, methods)


def until(of: dict[str, Any], level: float) -> str:
    """The evaluations that the runs needed to reach this level."""
    below = np.array(of["curves"]) <= level
    first = np.where(below.any(1), below.argmax(1) + 1.0, np.inf)
    each = of["evaluations_per_point"]
    return table.until(first * each, below.shape[1] * each)


def plot(config: Config, methods: dict[str, Any]) -> None:
    """Plot all runs against evaluations."""
    path = config.output / "covariances.png"
    with plotting.figure(path, figsize=(8, 5)) as (figure, axes):
        (panel,) = axes.ravel()
        for (name, of), color in zip(methods.items(), COLORS, strict=True):
            for number, curve in enumerate(of["curves"]):
                spent = (1 + np.arange(len(curve))) * of["evaluations_per_point"]
                label = name if number == 0 else None
                panel.loglog(spent, curve, color=color, lw=1, label=label)
        plotting.tidy(panel, xlabel="evaluations", ylabel="f / f at the start")
        panel.set_ylim(1e-10, 2)
        panel.legend(frameon=False, ncols=2)
        figure.suptitle(
            f"Condition number {config.condition:g} in {config.dimensions} dimensions"
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
