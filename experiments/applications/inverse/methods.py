"""The methods for inverse problems: lejax, gradients, evolution strategies, ensembles.

All are tuned in the same way, with the same number of solves of the forward map. An
ensemble ends when it represents the posterior.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from iterative_ensemble_smoother import ESMDA

import lejax
from experiments.applications.gradient_free import evolution
from experiments.applications.gradient_free.runs import Setting
from experiments.applications.gradient_free.search import Search, Searcher
from experiments.applications.gradient_free.searchers import (
    before_adam,
    gaussian,
    gradient,
    local_entropy,
    optimizer,
)
from experiments.applications.inverse.problem import InverseProblem

POINTS, DRAWS, RANK = 50, 300, 32
KALMAN, TRUNCATION = "EKI", 1 - 1e-6
SIGMA, RATE = {"sigma": (0.003, 1.0)}, {"rate": (0.001, 0.3)}
SHARE, MIXING = {"share": (0.05, 0.8)}, {"mixing": (0.02, 0.7)}
POPULATIONS = (20, 50, 100, 200)


class Run(NamedTuple):
    """A run from one seed.

    Attributes:
        solves: the solves up to each point.
        losses: f at the estimates of these points.
        errors: the errors of their fields.
        mean: the field of the last estimate.
        deviation: its standard deviation, from draws; None if it is not estimated.
    """

    solves: np.ndarray
    losses: np.ndarray
    errors: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray | None


def heat(loss: Any, params: Any, population: int) -> Search:
    """The score function, followed by Adam."""
    del params

    def head(numbers: Any, key: jax.Array) -> Any:
        sampler = lejax.score_function(population)
        return lejax.heat(sampler, numbers["sigma"] ** 2, key=key)

    return optimizer(before_adam(head), loss, population)


def methods_of(problem: InverseProblem) -> dict[str, Searcher]:
    """The methods of a problem, in the order of the tables."""
    found = {
        "local entropy": Searcher(
            local_entropy(credit=False), SIGMA | SHARE | RATE, POPULATIONS
        ),
        "heat": Searcher(heat, SIGMA | RATE, POPULATIONS),
    }
    for covariance in problem.covariances:
        rank = min(RANK, problem.dimensions)
        make = gaussian(covariance, temperature=1.0, rank=rank)
        name = f"gaussian, {covariance.replace('_', ' ')}"
        found[name] = Searcher(make, SIGMA | SHARE | MIXING, POPULATIONS)
    for name in problem.strategies:
        strategy = {
            "CMA_ES": evolution.cma_es,
            "Sep_CMA_ES": evolution.sep_cma_es,
            "LM_MA_ES": evolution.lm_ma_es,
        }[name]
        found[name] = Searcher(evolution.search_of(strategy), SIGMA, POPULATIONS)
    sizes = tuple(problem.solves // parts for parts in (4, 8, 16, 32, 64))
    # Its runs are no `Search`; only its ranges are used here.
    found[KALMAN] = Searcher(gradient, {"pace": (0.1, 3.0)}, sizes)
    found["Adam, gradient"] = Searcher(gradient, RATE, (1,))
    return found


@functools.cache
def problem_of(name: str) -> InverseProblem:
    """The problem of a file in this folder."""
    return importlib.import_module(f"{__package__}.{name}").problem()


@functools.cache
def instance(problem: str, seed: int) -> tuple[jax.Array, jax.Array]:
    """The unknowns and the observations of an instance."""
    one, other = jax.random.split(jax.random.key(seed))
    truth = problem_of(problem).truth(one)
    return truth, problem_of(problem).observe(other, truth)


def run(problem: str, solves: int, name: str, setting: Setting, seed: int) -> Run:
    """Run one method on one instance, with this many solves."""
    truth, y = instance(problem, seed)
    if name == KALMAN:
        return _kalman(problem, solves, setting, truth, y, seed)
    each, program = _program(problem, solves, name, setting.population)
    (losses, errors), mean, draws = program(
        truth, y, jax.random.key(seed), setting.numbers
    )
    deviation = None if draws is None else np.std(np.asarray(draws), 0)
    spent = each * (1 + np.arange(len(losses)))
    losses, errors, mean = map(np.asarray, (losses, errors, mean))
    return Run(spent, losses, errors, mean, deviation)


@functools.cache
def _program(
    problem_name: str, solves: int, name: str, population: int
) -> tuple[int, Callable[..., Any]]:
    """The number of solves between two points, and the compiled run."""
    problem = problem_of(problem_name)
    start = jnp.zeros(problem.dimensions)
    search = methods_of(problem)[name].make(problem.loss, start, population)
    updates = max(1, solves // search.evaluations)
    each = max(1, updates // POINTS)

    def whole(truth: jax.Array, y: jax.Array, key: jax.Array, numbers: Any) -> Any:
        begin, last = jax.random.split(jax.random.fold_in(key, 0))
        first = search.init(start, begin, numbers)

        def block(state: Any, number: jax.Array) -> Any:
            def update(k: Any, state: Any) -> Any:
                return search.update(
                    state, jax.random.fold_in(key, 1 + k), k, y, numbers
                )

            state = jax.lax.fori_loop(number * each, (number + 1) * each, update, state)
            u = search.params(state)
            return state, (problem.loss(u, y), problem.error(u, truth))

        state, found = jax.lax.scan(block, first, jnp.arange(updates // each))
        u, draws = search.params(state), None
        if name.startswith("gaussian"):
            noise = jax.random.normal(last, (DRAWS, *u.shape))
            root = state[1][0].covariance
            draws = jax.vmap(lambda z: problem.field(u + root.times(z)))(noise)
        return found, problem.field(u), draws

    return each * search.evaluations, jax.jit(whole)


@functools.cache
def _compiled(name: str) -> tuple[Any, Any, Any]:
    """Forward map and field of ensembles, f and error of one estimate, compiled."""
    problem = problem_of(name)
    return (
        jax.jit(jax.vmap(problem.forward)),
        jax.jit(jax.vmap(problem.field)),
        jax.jit(lambda u, y, t: (problem.loss(u, y), problem.error(u, t))),
    )


def _kalman(
    name: str, solves: int, setting: Setting, truth: Any, y: Any, seed: int
) -> Run:
    """Ensemble Kalman inversion, from an ensemble of the prior to one of the posterior.

    The update is that of `ESMDA` with covariances of errors times α, Σ1/α = 1. 1/α is
    from the data misfit controller of Iglesias and Yang, times a pace. Failed members
    are dropped.
    """
    problem, (forward, field, judged) = problem_of(name), _compiled(name)
    covariance, count = np.asarray(problem.covariance, float), y.size
    if covariance.ndim == 0:
        covariance = float(covariance) * np.eye(count)
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    wanted = whiten @ np.asarray(y, float)
    rng = np.random.default_rng(seed)
    members = rng.normal(size=(problem.dimensions, min(setting.population, solves)))
    spent, done = [members.shape[1]], 0.0
    mean = jnp.zeros(problem.dimensions)
    found = [[float(x) for x in judged(mean, y, truth)]]
    while done < 1 and spent[-1] <= solves:
        seen = (
            whiten @ np.asarray(forward(jnp.asarray(members.T, jnp.float32)), float).T
        )
        known = np.isfinite(seen).all(0)
        if known.sum() < 3:
            break
        seen, members = seen[:, known], members[:, known]
        misfits = ((wanted[:, None] - seen) ** 2).sum(0) / 2
        step = max(count / (2 * misfits.mean()), (count / (2 * misfits.var())) ** 0.5)
        step = min(setting.numbers["pace"] * step, 1 - done)
        smoother = ESMDA(np.full(count, 1 / step), wanted, alpha=1, seed=rng)
        smoother.prepare_assimilation(Y=seen, truncation=TRUNCATION)
        members = smoother.assimilate_batch(X=members)
        mean = jnp.asarray(members.mean(1), jnp.float32)
        found.append([float(x) for x in judged(mean, y, truth)])
        spent.append(spent[-1] + members.shape[1])
        done += step
    # A point is the result of an update with all solves before; the first is the prior.
    losses, errors = np.array(found).T
    spent = np.array([1, *spent[:-1]])
    fields = np.asarray(field(jnp.asarray(members.T, jnp.float32)))
    return Run(spent, losses, errors, np.asarray(problem.field(mean)), fields.std(0))
