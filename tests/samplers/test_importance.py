"""Importance sampling against closed forms and quadrature."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.problems import (
    ONE_DIMENSIONAL,
    QUADRATIC,
    assert_mean,
    quadrature,
    replicate,
)

import lejax


def run(sampler, value_fn, params, tau, beta=1.0, replicates=64):
    """Displacements and infos of independent updates."""

    def step(key, params, tau, beta):
        out = sampler.estimate(key, (), params, value_fn=value_fn, tau=tau, beta=beta)
        return out[0], out[2]

    return replicate(step, replicates, given=(params, tau, beta))


def some_of(names, first, second, third):
    """A product of three, by default a half in which every pair of values meets."""
    cases = []
    for (i, a), (j, b), (k, c) in itertools.product(
        *map(enumerate, (first, second, third))
    ):
        marks = pytest.mark.slow if (i + j + k) % 2 else ()
        cases.append(pytest.param(a, *b, c, marks=marks))
    return pytest.mark.parametrize(names, cases)


@some_of(
    "dtype, tau, beta, antithetic",
    ["float32", "float64"],
    [(0.3, 1.0), (0.3, 2.5), (1.7, 0.6)],
    [True, False],
)
def test_quadratic_on_a_nested_tree(dtype, tau, beta, antithetic):
    with jax.enable_x64(dtype == "float64"):
        params = QUADRATIC.params(dtype)
        x = QUADRATIC.flat(params)
        sampler = lejax.importance(4000, antithetic=antithetic)
        found, info = run(sampler, QUADRATIC.value_fn, params, tau, beta)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((found, info[:3])))
        # The ratio is biased by about 1/ESS of the step, F by β se²/2: both are far
        # below the standard errors of 64 replicates, and allowed.
        assert_mean(
            QUADRATIC.flat(found), QUADRATIC.displacement(x, tau, beta), bias=5e-4
        )
        assert_mean(info.objective, QUADRATIC.free_energy(x, tau, beta), bias=5e-4)


@pytest.mark.parametrize(
    ("tau", "beta", "antithetic"),
    [
        (0.3, 2.5, False),
        (1.7, 0.6, True),
        pytest.param(0.3, 2.5, True, marks=pytest.mark.slow),
        pytest.param(1.7, 0.6, False, marks=pytest.mark.slow),
        pytest.param(1.7, 1e-3, True, marks=pytest.mark.slow),
        pytest.param(1.7, 1e-3, False, marks=pytest.mark.slow),
    ],
)
def test_standard_error_is_that_of_replicates(tau, beta, antithetic):
    params = QUADRATIC.params()
    truth = QUADRATIC.free_energy(QUADRATIC.flat(params), tau, beta)
    sampler = lejax.importance(2000, antithetic=antithetic)
    _, info = run(sampler, QUADRATIC.value_fn, params, tau, beta, replicates=2000)
    score = (info.objective - truth) / info.standard_error
    # Of first order in 1/J: 2000 replicates see 3 % of a variance.
    assert_mean(score**2, 1, bias=0.02)


@some_of(
    "name, tau, beta, antithetic",
    [*ONE_DIMENSIONAL],
    [(0.2, 1.0), (2.3, 1.0), (0.7, 3.0)],
    [True, False],
)
def test_quadrature(name, tau, beta, antithetic):
    f, x = ONE_DIMENSIONAL[name], jnp.array(0.4)
    truth = quadrature(f, 0.4, tau, beta)
    sampler = lejax.importance(4000, antithetic=antithetic)
    displacement, info = run(sampler, f, x, tau, beta, replicates=256)
    assert_mean(displacement, truth.displacement, bias=2 / 4000)
    assert_mean(info.objective, truth.free_energy, bias=2 / 4000)


def test_one_update_is_within_the_errors_of_its_effective_sample_size():
    """Plain draws: the error of E_q[X] is that of ESS draws from q, to its order."""
    f, x = ONE_DIMENSIONAL["bimodal"], jnp.array(0.4)
    truth = quadrature(f, 0.4, 0.7, 1.0)
    sampler = lejax.importance(100_000, antithetic=False)
    displacement, info = run(sampler, f, x, 0.7, replicates=1)
    error = np.sqrt(truth.variance / info.effective_sample_size[0])
    assert 10_000 < info.effective_sample_size[0] < 100_000
    assert abs(displacement[0] - truth.displacement) < 4 * error
    assert abs(info.objective[0] - truth.free_energy) < 4 * info.standard_error[0]


@pytest.mark.parametrize("antithetic", [True, False])
def test_effective_sample_size_is_that_of_all_weights(antithetic):
    """Every weight of the J samples enters once: recomputed from the losses."""
    seen = []

    def f(x):
        value = jnp.sum(x**2)
        jax.debug.callback(lambda v: seen.append(np.ravel(v)), value)
        return value

    sampler = lejax.importance(101, antithetic=antithetic, chunk_size=20)
    step = jax.jit(functools.partial(sampler.estimate, value_fn=f, tau=0.4, beta=2.0))
    _, _, info = step(jax.random.key(0), (), jnp.ones(3))
    jax.effects_barrier()
    losses = np.concatenate(seen).astype(np.float64)
    weights = np.exp(-2.0 * losses)
    assert losses.size == 101
    np.testing.assert_allclose(
        info.effective_sample_size, weights.sum() ** 2 / (weights**2).sum(), rtol=1e-4
    )
    np.testing.assert_allclose(info.objective, -np.log(weights.mean()) / 2.0, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "tau"),
    [
        ("skewed", 0.2),
        ("bimodal", 2.3),
        pytest.param("skewed", 2.3, marks=pytest.mark.slow),
        pytest.param("bimodal", 0.2, marks=pytest.mark.slow),
    ],
)
def test_pairs_have_less_noise_for_the_same_normals(name, tau):
    f, x = ONE_DIMENSIONAL[name], jnp.array(0.4)
    pairs, _ = run(lejax.importance(500), f, x, tau, replicates=1000)
    plain, _ = run(lejax.importance(250, antithetic=False), f, x, tau, replicates=1000)
    # Relative to τ/250, V_o against 1 + V_o + V_e.
    assert pairs.var() < 0.8 * plain.var()


def test_an_odd_sample_has_noise_of_its_own():
    points = []

    def f(x):
        jax.debug.callback(lambda x: points.append(float(x)), x)
        return x

    sampler = lejax.importance(3, chunk_size=1)
    step = jax.jit(functools.partial(sampler.estimate, value_fn=f, tau=0.4))
    step(jax.random.key(0), (), jnp.array(0.0))
    jax.effects_barrier()
    sizes, counts = np.unique(np.abs(points), return_counts=True)
    assert sorted(counts) == [1, 2]
    assert abs(sizes[0] - sizes[1]) > 1e-3


@pytest.mark.parametrize(
    "replicates", [8000, pytest.param(40_000, marks=pytest.mark.slow)]
)
def test_bias_of_the_ratio(replicates):
    """For linear f the displacement is short by the factor 1 - E[1/ESS]."""
    slope, tau, beta = jnp.array([0.8, -0.4]), 0.5, 1.5

    def f(x):
        return x @ slope

    sampler = lejax.importance(12, antithetic=False)
    displacement, info = run(sampler, f, jnp.zeros(2), tau, beta, replicates)
    share = 1 - (1 / info.effective_sample_size).mean()
    assert share < 0.9
    assert_mean(displacement, -beta * tau * np.asarray(slope) * float(share))


def test_standard_error_is_withheld_where_few_samples_are_effective():
    def f(x):
        return 40 * jnp.sum(x**2)

    _, info = run(lejax.importance(1000), f, jnp.ones(20), 0.3, replicates=4)
    assert (info.effective_sample_size < 10).all()
    assert np.isnan(info.standard_error).all()


def test_objectives_without_gradient():
    """An error count behind a pure callback, integer-valued, trains."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100, 3)).astype(np.float32)
    labels = inputs @ np.array([1.0, -2.0, 0.5], np.float32) > 0

    def count(w):
        return np.int32(((inputs @ w > 0) != labels).sum())

    def f(w):
        return jax.pure_callback(
            count, jax.ShapeDtypeStruct((), jnp.int32), w, vmap_method="sequential"
        )

    sampler = lejax.importance(100, chunk_size=50)
    tx = optax.chain(
        lejax.local_entropy(sampler, 0.1, key=jax.random.key(0)), optax.sgd(0.5)
    )

    def update(carry, _):
        w, state = carry
        updates, state = tx.update(None, state, w, value_fn=f)
        return (optax.apply_updates(w, updates), state), None

    w = jnp.array([-1.0, 0.1, 0.1])
    assert count(np.asarray(w)) > 50
    (w, _), _ = jax.lax.scan(update, (w, tx.init(w)), length=40)
    assert count(np.asarray(w)) < 10


def test_no_gradient_is_taken():
    """A loss whose derivative rule raises is never differentiated."""

    @jax.custom_vjp
    def f(x):
        return jnp.sum(x**2)

    def refuse(*args):
        raise AssertionError("a gradient was taken")

    f.defvjp(refuse, refuse)
    for sampler in (lejax.importance(10), lejax.score_function(10)):
        step = lejax.value_and_grad(f, sampler, 0.5)
        jax.eval_shape(step, jnp.ones(2), jax.random.key(0))
