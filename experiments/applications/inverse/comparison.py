"""Bayesian inverse problems: lejax, gradients, evolution strategies, an ensemble.

Each method is tuned by random search on a separate instance, then run on others. All
have the same maximal number of solves of the forward map. A gradient counts as three.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

from experiments.applications.gradient_free.runs import Setting, best, candidates
from experiments.applications.inverse import figures
from experiments.applications.inverse.methods import (
    instance,
    methods_of,
    problem_of,
    run,
)
from experiments.common import plotting, results

TUNING_SEED = 1000
REFERENCE_STEPS = 300


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    problem: tyro.conf.Positional[Literal["linear_gaussian", "lorenz", "darcy"]]
    """The problem; each is a file of its name in this folder."""
    solves: int = 0
    """Solves of the forward map in every run; 0 is the problem's default."""
    trials: int = 20
    """Number of settings that are tried for each method."""
    seeds: int = 5
    """Number of instances, each with a truth and errors of its own."""
    output: Path = Path("results")
    """Folder of the results. Results that exist are not computed again."""


def reference(config: Config, seed: int) -> float:
    """The least f that L-BFGS finds from the truth; its gradients are not counted."""
    problem = problem_of(config.problem)
    truth, y = instance(config.problem, seed)
    if problem.exact is not None:
        mean = jnp.asarray(problem.exact(y)[0], jnp.float32)
        return float(problem.loss(mean, y))
    if not problem.smooth:
        return float(problem.loss(truth, y))

    def f(u: jax.Array) -> jax.Array:
        return problem.loss(u, y)

    optimizer = optax.lbfgs()

    @jax.jit
    def step(u: jax.Array, state: Any) -> Any:
        value, grad = optax.value_and_grad_from_state(f)(u, state=state)
        updates, state = optimizer.update(
            grad, state, u, value=value, grad=grad, value_fn=f
        )
        return optax.apply_updates(u, updates), state, value

    u, state, least = truth, optimizer.init(truth), np.inf
    for _ in range(REFERENCE_STEPS):
        u, state, value = step(u, state)
        least = min(least, float(value))
    return least


def short(values: Any) -> Any:
    """Every number, rounded to four digits."""
    return [float(f"{x:.4g}") for x in np.ravel(values)]


def outcome(config: Config, name: str, setting: Setting, seed: int) -> dict[str, Any]:
    """The record of a run."""
    problem = problem_of(config.problem)
    found = run(config.problem, config.solves, name, setting, seed)
    kept = {
        "solves": found.solves.tolist(),
        "losses": short(found.losses),
        "errors": short(found.errors),
    }
    if found.deviation is not None:
        true = np.asarray(problem.field(instance(config.problem, seed)[0]))
        inside = np.abs(found.mean - true) <= 1.96 * found.deviation
        kept["covered"] = float(f"{inside.mean():.4g}")
    if seed == 0:  # for the pictures
        kept["mean"] = short(found.mean)
        if found.deviation is not None:
            kept["deviation"] = short(found.deviation)
    return kept


def compare(config: Config) -> dict[str, Any]:
    """Tune and run, writing after each method; results that exist are kept."""
    path = config.output / f"inverse_{config.problem}.json"
    record = results.kept(path, config) or {}
    record = {k: record.get(k, {}) for k in ("references", "tuning", "runs")}
    methods = methods_of(problem_of(config.problem))
    for seed in range(config.seeds):
        if str(seed) not in record["references"]:
            record["references"][str(seed)] = reference(config, seed)
    bar = tqdm(total=len(methods) * (config.trials + config.seeds), unit="run")
    for name, of in methods.items():
        bar.set_description(name)
        if name in record["runs"]:
            bar.update(config.trials + config.seeds)
            continue
        tried = record["tuning"][name] = []
        for setting in candidates(of, config.trials):
            found = run(config.problem, config.solves, name, setting, TUNING_SEED)
            score = float(f"{-found.losses[-1]:.5g}")
            tried.append(setting._asdict() | {"score": score})
            bar.update()
        record["runs"][name] = {}
        for seed in range(config.seeds):
            record["runs"][name][str(seed)] = outcome(config, name, best(tried), seed)
            bar.update()
        order = [other for other in methods if other in record["runs"]]
        record["runs"] = {other: record["runs"][other] for other in order}
        results.write_json(path, config, **record)
    bar.close()
    return record


def table(config: Config, record: dict[str, Any]) -> str:
    """f minus its reference after a tenth of the solves and all, errors, coverage."""
    tenth = config.solves // 10
    lines = [
        [
            "method",
            f"f - f_ref, {tenth:,} solves",
            "at the end",
            "solves",
            "relative error",
            "95 % intervals cover",
        ]
    ]
    lines.append(["---"] * len(lines[0]))
    for name, runs in record["runs"].items():
        above, early = [], []
        for seed, of in runs.items():
            losses = np.array(of["losses"]) - record["references"][seed]
            above.append(losses[-1])
            before = [
                x for s, x in zip(of["solves"], losses, strict=True) if s <= tenth
            ]
            early.append(before[-1] if before else np.nan)
        errors = [of["errors"][-1] for of in runs.values()]
        covered = [of["covered"] for of in runs.values() if "covered" in of]
        lines.append(
            [
                name,
                "–" if np.isnan(early).any() else scaled(early),
                scaled(above),
                f"{np.mean([of['solves'][-1] for of in runs.values()]):,.0f}",
                plotting.shown(errors, 3),
                f"{np.mean(covered):.2f}" if covered else "–",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def scaled(samples: Any) -> str:
    """The median and the range, as instances differ by orders of magnitude."""
    digits = 0 if np.abs(np.median(samples)) >= 100 else 1
    middle, low, high = (
        f"{of(samples):,.{digits}f}" for of in (np.median, np.min, np.max)
    )
    return f"{middle} ({low} to {high})"


def main(config: Config) -> None:
    """Compare, print and plot."""
    solves = config.solves or problem_of(config.problem).solves
    config = dataclasses.replace(config, solves=solves)
    record = compare(config)
    problem = problem_of(config.problem)
    start = [
        float(
            problem.loss(jnp.zeros(problem.dimensions), instance(config.problem, s)[1])
        )
        for s in range(config.seeds)
    ]
    print(f"{config.problem}; {config.seeds} instances; of f median and range,")
    print("of errors mean ± 95 % interval")
    above = np.array(start) - list(record["references"].values())
    print(f"f - f_ref at the start: {scaled(above)}\n")
    print(table(config, record))
    figures.draw(config, record)
