"""Heat regularisation: Robbins-Monro, pathwise and score-function gradients."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.problems import (
    ONE_DIMENSIONAL,
    QUADRATIC,
    assert_mean,
    quadrature,
    replicate,
)

import lejax

GRADIENTS = {"pathwise": lejax.pathwise, "score_function": lejax.score_function}


def run(sampler, value_fn, params, tau, replicates=256):
    def step(key, params, tau):
        out = sampler.estimate(key, (), params, value_fn=value_fn, tau=tau)
        return out[0], out[2]

    return replicate(step, replicates, given=(params, tau))


def paper_steps(j):
    return 0.1 * (1.0 + jnp.asarray(j, jnp.float32)) ** -0.7


def thinned(names, factors, default):
    """The product of the factors; what is not in the default is of the full suite."""
    cases = []
    for case in itertools.product(*factors):
        marks = () if case in default else pytest.mark.slow
        cases.append(pytest.param(*case, marks=marks))
    return pytest.mark.parametrize(names, cases)


# Every pair of values.
QUADRATURES = {
    (2, "pathwise", True, "skewed", 1.3),
    (2, "score_function", False, "bimodal", 0.2),
    (7, "pathwise", True, "bimodal", 0.2),
    (7, "score_function", False, "skewed", 1.3),
    (100, "pathwise", False, "skewed", 0.2),
    (100, "score_function", True, "bimodal", 1.3),
}
QUADRATICS = {
    ("pathwise", 0.3, "float32"),
    ("pathwise", 1.7, "float64"),
    ("score_function", 0.3, "float64"),
    ("score_function", 1.7, "float32"),
}
IMPLICIT_STEPS = {("skewed", 0.4, 0.05), ("bimodal", 0.15, None)}


@thinned(
    "num_samples, make, antithetic, name, tau",
    ([2, 7, 100], GRADIENTS, [True, False], ONE_DIMENSIONAL, [0.2, 1.3]),
    QUADRATURES,
)
def test_quadrature(make, num_samples, antithetic, name, tau):
    """Unbiased for every number of samples, odd ones and baselines included."""
    f, x = ONE_DIMENSIONAL[name], jnp.array(0.4)
    truth = quadrature(f, 0.4, tau)
    sampler = GRADIENTS[make](num_samples, antithetic=antithetic, chunk_size=6)
    displacement, info = run(sampler, f, x, tau, replicates=8000)
    assert_mean(-displacement / tau, truth.heat_gradient)
    assert_mean(info.objective, truth.heat)
    assert (info.num_evaluations == num_samples).all()
    assert (info.effective_sample_size == num_samples).all()
    if num_samples == 100:
        assert_mean((info.objective - truth.heat) ** 2 - info.standard_error**2, 0)


@thinned(
    "make, tau, dtype", (GRADIENTS, [0.3, 1.7], ["float32", "float64"]), QUADRATICS
)
def test_quadratic_on_a_nested_tree(make, tau, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = QUADRATIC.params(dtype)
        x = QUADRATIC.flat(params)
        found, info = run(GRADIENTS[make](100), QUADRATIC.value_fn, params, tau)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((found, info[:3])))
        assert_mean(QUADRATIC.flat(found), -tau * QUADRATIC.matrix @ x, bias=1e-6)
        assert_mean(info.objective, QUADRATIC.heat(x, tau), bias=1e-6)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_constant_in_the_loss_costs_no_digits(offset):
    """Baseline and standard error are central: float32 rounds f itself to 1e-3."""

    for antithetic in (True, False):
        sampler = lejax.score_function(2000, antithetic=antithetic, chunk_size=100)

        def step(key, offset, sampler=sampler):
            def f(x):
                return jnp.sum(x) * 10 + offset

            out = sampler.estimate(key, (), jnp.zeros(2), value_fn=f, tau=0.25)
            return out[0], out[2]

        displacement, info = replicate(step, 256, given=(jnp.float32(offset),))
        assert_mean(-displacement / 0.25, 10.0, bias=0.01)
        assert abs(info.objective - offset).max() < 1.5
    np.testing.assert_allclose(
        info.standard_error, np.sqrt(200 * 0.25 / 2000), rtol=0.15
    )


@pytest.mark.parametrize(("num_steps", "share"), [(30, 0.485), (10, 0.335), (3, 0.195)])
def test_robbins_monro_stopped_early(num_steps, share):
    """For a constant gradient it returns 1 - Π(1 - a_j) of the step."""
    slope = jnp.array([1.0, -3.0])
    exact = 1 - np.prod(1 - 0.1 * np.arange(1, num_steps + 1) ** -0.7)
    assert abs(exact - share) < 5e-4
    sampler = lejax.robbins_monro(num_steps, 2, paper_steps)
    step = jax.jit(
        functools.partial(sampler.estimate, value_fn=lambda x: x @ slope, tau=0.3)
    )
    displacement, _, _ = step(jax.random.key(0), (), jnp.zeros(2))
    np.testing.assert_allclose(displacement, -exact * 0.3 * slope, rtol=1e-5)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("tau", [0.3, 1.7])
def test_robbins_monro_is_the_recursion(tau, antithetic):
    """On f = a x²/2 the mean obeys y ← y - a_j [y + τ a (x + y)] exactly."""
    y, x, curvature, variance = 0.0, 1.5, 0.8, 0.0
    for j in range(12):
        a = float(paper_steps(j))
        y -= a * (y + tau * curvature * (x + y))
        # Pairs cancel in a linear gradient; of three draws one is unpaired.
        noise = tau**3 * curvature**2 * (1 / 9 if antithetic else 1 / 3)
        variance = (1 - a * (1 + tau * curvature)) ** 2 * variance + a**2 * noise
    sampler = lejax.robbins_monro(12, 3, paper_steps, antithetic=antithetic)
    displacement, info = run(
        sampler, lambda x: 0.5 * curvature * x**2, jnp.array(x), tau, 2000
    )
    assert_mean(displacement, y, bias=1e-6)
    assert_mean((displacement - y) ** 2, variance)
    assert (info.num_evaluations == 36).all()
    assert (info.effective_sample_size == 36).all()
    assert_mean(info.objective, curvature * (x**2 + tau) / 2)


@thinned(
    "name, tau, smoothing",
    (ONE_DIMENSIONAL, [0.15, 0.4], [None, 0.05]),
    IMPLICIT_STEPS,
)
def test_robbins_monro_finds_the_implicit_step(name, tau, smoothing):
    """Run to convergence it solves x = x_k - τ ∇F^H(x), with draws of `smoothing`."""
    f, start = ONE_DIMENSIONAL[name], 0.9
    variance = tau if smoothing is None else smoothing

    def gap(x):
        return x - start + tau * quadrature(f, x, variance).heat_gradient

    low, high = -1.0, 2.0  # the zero from which no other is crossed, by bisection
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) < 0 else (low, middle)
    sampler = lejax.robbins_monro(
        2000, 10, lambda j: 1.0 / (10.0 + j.astype(jnp.float32)), smoothing=smoothing
    )
    displacement, info = run(sampler, f, jnp.array(start), tau, 128)
    # The last iterate of a chain with steps 1/j is biased by O(1/j).
    assert_mean(start + displacement, (low + high) / 2, bias=1e-3)
    assert_mean(info.objective, quadrature(f, start, variance).heat)
