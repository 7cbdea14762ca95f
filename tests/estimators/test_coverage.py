"""The interval of the free energy: in how many of 4000 runs the truth is in it."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.problems import quadrature, skewed

import lejax

pytestmark = pytest.mark.runs
DIMENSION = 8
CURVATURES = np.linspace(0.5, 2.0, DIMENSION, dtype=np.float32)


class Even:
    """A quadratic at its minimum."""

    x = jnp.zeros(DIMENSION)

    @staticmethod
    def value_fn(x):
        return jnp.sum(CURVATURES * x**2) / 2

    @staticmethod
    def free_energy(tau, beta):
        return np.log1p(beta * tau * CURVATURES).sum() / (2 * beta)


class Odd:
    """Linear."""

    x = jnp.ones(DIMENSION)

    @staticmethod
    def value_fn(x):
        return 0.4 * jnp.sum(CURVATURES * x)

    @staticmethod
    def free_energy(tau, beta):
        return 0.4 * CURVATURES.sum() - 0.08 * beta * tau * (CURVATURES**2).sum()


class Skewed:
    """A sum of functions of one number each, so that F is a sum as well."""

    x = jnp.full(DIMENSION, -0.5)

    @staticmethod
    def value_fn(x):
        return jnp.sum(skewed(x))

    @staticmethod
    def free_energy(tau, beta):
        return DIMENSION * quadrature(skewed, -0.5, tau, beta).free_energy


PROBLEMS = {"even": Even, "odd": Odd, "skewed": Skewed}
LAYOUTS = {
    "pairs": {},
    "plain": {"antithetic": False},
    "shared draws": {"signs_per_draw": 4},
    "plain, shared draws": {"antithetic": False, "signs_per_draw": 4},
    "four shards": {"axis_name": "shard"},
}


# By default every problem, and most of the layouts.
BY_DEFAULT = {
    ("even", "pairs"),
    ("odd", "plain"),
    ("skewed", "shared draws"),
}


@pytest.mark.parametrize(
    ("problem", "layout"),
    [
        pytest.param(*case, marks=[] if case in BY_DEFAULT else pytest.mark.slow)
        for case in itertools.product(PROBLEMS, LAYOUTS)
    ],
)
def test_coverage(problem, layout):
    problem, options = PROBLEMS[problem], LAYOUTS[layout]
    sampler = lejax.importance(800, **options)

    def one(key, tau, beta):
        _, _, info = sampler.estimate(
            key, (), problem.x, value_fn=problem.value_fn, tau=tau, beta=beta
        )
        return info.objective, info.standard_error

    def of_shards(key, tau, beta):
        step = jax.vmap(lambda _: one(key, tau, beta), axis_name="shard")
        return jax.tree.map(lambda leaf: leaf[0], step(jnp.arange(4)))

    step = jax.vmap(of_shards if "axis_name" in options else one, (0, None, None))
    runs, keys = jax.jit(step), jax.random.split(jax.random.key(0), 4000)
    for tau, beta in ((0.2, 1.0), (0.05, 2.0)):
        found, error = runs(keys, jnp.float32(tau), jnp.float32(beta))
        gap = np.abs(found - problem.free_energy(tau, beta))
        covered = gap < 1.96 * np.asarray(error)
        assert 0.93 < covered.mean() < 0.97, (tau, beta)
