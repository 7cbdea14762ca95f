"""Langevin dynamics against its own recursion in closed form, and quadrature."""

from __future__ import annotations

import functools

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


def linear_chain(curvature, x, start, tau, beta, steps, temperatures):
    """Mean and variance of the end, and means of the points, of the chain
    x' = x_j - (ε/2)[βa x_j + (x_j - x)/τ] + N(0, Tε) for f = a x²/2: exact."""
    mean, variance, visited = start, 0.0, [start]
    for step, temperature in zip(steps[:-1], temperatures[:-1], strict=True):
        mean = mean - step / 2 * (beta * curvature * mean + (mean - x) / tau)
        contraction = 1 - step / 2 * (beta * curvature + 1 / tau)
        variance = contraction**2 * variance + temperature * step
        visited.append(mean)
    return mean, variance, visited


# Of step and temperature: a, b, c of a/(b + cj).
SCHEDULES = {
    "constant": ((0.1, 1.0, 0.0), (1.0, 1.0, 0.0)),
    "decaying": ((0.4, 2.0, 1.0), (1.0, 1.0, 0.0)),
    "published": ((0.4, 2.0, 1.0), (0.4, 2.0, 1.0)),
    "hot": ((0.1, 1.0, 0.0), (3.0, 1.0, 1.0)),
}


def scheduled(numbers, j):
    top, first, slope = numbers
    return top / (first + slope * j)


@functools.cache
def chains(num_steps, averaging=False):
    """Of f = a x²/2 by the numbers of everything else, as one program."""

    def step(key, curvature, x, start, tau, beta, step_size, temperature, average):
        sampler = lejax.sgld(
            num_steps,
            lambda j: scheduled(step_size, j.astype(jnp.float32)),
            temperature=lambda j: scheduled(temperature, j.astype(jnp.float32)),
            averaging=average if averaging else None,
            warm_start=True,
        )
        displacement, state, _ = sampler.estimate(
            key,
            lejax.SGLDState(start),
            x,
            value_fn=lambda x: curvature / 2 * x**2,
            tau=tau,
            beta=beta,
        )
        return displacement, state.position

    keys = jax.random.split(jax.random.key(0), 4000)
    over_keys = jax.jit(jax.vmap(step, (0, *(None,) * 8)))

    def run(*numbers):
        return over_keys(keys, *jax.tree.map(jnp.float32, numbers))

    return run


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 30])
@pytest.mark.parametrize(("tau", "beta"), [(0.3, 1.0), (1.7, 2.5)])
def test_the_chain_is_the_recursion(tau, beta, num_steps, schedule):
    """Number of moves, ε-weights, drift, noise: a lost ½ or a flipped sign fails."""
    step_size, temperature = SCHEDULES[schedule]
    curvature, x, start = 0.8, 1.5, 0.7
    steps = np.array([scheduled(step_size, j) for j in range(num_steps)])
    temperatures = np.array([scheduled(temperature, j) for j in range(num_steps)])
    end, variance, visited = linear_chain(
        curvature, x, start, tau, beta, steps, temperatures
    )
    average = np.average(visited, weights=steps)
    displacement, position = chains(num_steps)(
        curvature, x, start, tau, beta, step_size, temperature, 0.0
    )
    rounding = 1e-5
    assert_mean(displacement, average - x, bias=rounding)
    assert_mean(position, end, bias=rounding)
    assert_mean((position - end) ** 2, variance, bias=rounding)


@pytest.mark.parametrize("averaging", [0.3, 1.0])
@pytest.mark.parametrize(("tau", "beta"), [(0.3, 1.0), (1.7, 2.5)])
def test_the_first_points_are_forgotten(tau, beta, averaging):
    """μ ← (1 - α) μ + α x_j from μ_1 = x_1 on, in mean and variance."""
    num_steps, step_size, curvature, x, start = 6, 0.2, 0.8, 1.5, 0.7
    rate = 1 - step_size / 2 * (beta * curvature + 1 / tau)
    # The mean, and the coefficients of the noises, of the point and of the average.
    point = np.zeros(num_steps)
    point[0] = start
    average = point
    for j in range(1, num_steps):
        point = rate * point
        point[0] += step_size / 2 * x / tau
        point[j] = np.sqrt(step_size)
        average = (1 - averaging) * average + averaging * point
    constant = (step_size, 1.0, 0.0), (1.0, 1.0, 0.0)
    displacement, _ = chains(num_steps, averaging=True)(
        curvature, x, start, tau, beta, *constant, averaging
    )
    assert_mean(displacement, average[0] - x, bias=1e-5)
    noise = displacement - (average[0] - x)
    assert_mean(noise**2, average[1:] @ average[1:], bias=1e-5)


def bias(name, tau, beta, step_size, time, replicates):
    """Of the displacement by chains of so much time, and the standard deviation of q.

    They start at the mean of q, so that no way there is averaged in.
    """
    f, x = ONE_DIMENSIONAL[name], 0.4
    of_q = quadrature(f, x, tau, beta)
    sampler = lejax.sgld(int(time / step_size), step_size, warm_start=True)

    def displacement(key, start, tau, beta):
        state = lejax.SGLDState(start)
        return sampler.estimate(
            key, state, jnp.array(x), value_fn=f, tau=tau, beta=beta
        )[0]

    given = jnp.float32(x + of_q.displacement), tau, beta
    found = replicate(displacement, replicates, given=given)
    return found - of_q.displacement, np.sqrt(of_q.variance)


@pytest.mark.parametrize(
    ("name", "step_size", "tau", "beta"),
    [
        ("skewed", 0.2, 0.3, 1.0),
        ("skewed", 0.2, 1.7, 0.6),
        ("bimodal", 0.02, 0.3, 1.0),
        pytest.param("bimodal", 0.02, 1.7, 0.6, marks=pytest.mark.slow),
    ],
)
def test_short_chains_meet_quadrature(name, step_size, tau, beta):
    """In the limit of small steps; `test_bias_shrinks_with_the_step` is sharper."""
    coarse, scale = bias(name, tau, beta, step_size, 100, 256)
    fine, _ = bias(name, tau, beta, step_size / 2, 100, 256)
    assert_mean(2 * fine - coarse, 0, bias=0.02 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
@pytest.mark.parametrize(("tau", "beta"), [(0.3, 1.0), (1.7, 0.6)])
def test_bias_shrinks_with_the_step(name, tau, beta):
    """The bias at ε is twice that at ε/2: both meet quadrature in the limit."""
    # As large as the curvature allows; beyond x = 2 the bimodal loss is steep.
    full, replicates = (0.02, 1024) if name == "bimodal" else (0.2, 16_384)
    coarse, scale = bias(name, tau, beta, full, 400, replicates)
    fine, _ = bias(name, tau, beta, full / 2, 400, replicates)
    assert abs(coarse.mean()) < 0.1 * scale  # 0 is near enough to mean something
    # Richardson: twice the fine minus the coarse has no term of first order.
    assert_mean(2 * fine - coarse, 0, bias=0.005 * scale)
    if name == "skewed":
        assert abs(coarse.mean()) > 10 * coarse.std() / np.sqrt(replicates)
        assert 1.5 < coarse.mean() / fine.mean() < 2.7


@pytest.mark.parametrize(
    ("dtype", "tau", "beta"),
    [
        ("float32", 0.3, 2.5),
        ("float64", 1.7, 0.6),
        pytest.param("float32", 1.7, 0.6, marks=pytest.mark.slow),
        pytest.param("float64", 0.3, 2.5, marks=pytest.mark.slow),
    ],
)
def test_quadratic_on_a_nested_tree(dtype, tau, beta):
    """From the mean of q on, a linear chain keeps that mean at every step size."""
    with jax.enable_x64(dtype == "float64"):
        params = QUADRATIC.params(dtype)
        truth = QUADRATIC.displacement(QUADRATIC.flat(params), tau, beta)
        centre = {
            "a": params["a"] + jnp.asarray(truth[:2], dtype),
            "b": {"c": params["b"]["c"] + jnp.asarray(truth[None, 2:], dtype)},
        }
        sampler = lejax.sgld(200, 0.1, warm_start=True)

        def step(key, centre, params, tau, beta):
            return sampler.estimate(
                key,
                lejax.SGLDState(centre),
                params,
                value_fn=QUADRATIC.value_fn,
                tau=tau,
                beta=beta,
            )[:2]

        given = centre, params, tau, beta
        displacement, state = replicate(step, 500, given=given)
        assert jax.tree.structure(displacement) == jax.tree.structure(params)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(displacement))
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(state))
        assert_mean(QUADRATIC.flat(displacement), truth, bias=1e-5)


def test_a_warm_chain_goes_on_where_it_ended():
    """Two updates at fixed parameters are one chain; a restarted one forgets."""

    def f(x):
        return 0.5 * jnp.sum(x**2)

    x, key = jnp.array([2.0, -1.0]), jax.random.key(0)

    def jitted(sampler):
        return jax.jit(functools.partial(sampler.estimate, value_fn=f, tau=0.7))

    warm = lejax.sgld(50, 0.1, warm_start=True)
    _, first, _ = jitted(warm)(key, warm.init(x), x)
    one_more = jitted(lejax.sgld(1, 0.1, warm_start=True))
    displacement, same, info = one_more(key, first, x)
    np.testing.assert_allclose(displacement, first.position - x, rtol=1e-6)
    np.testing.assert_allclose(same.position, first.position, rtol=1e-6)
    assert info.num_evaluations == 1
    # The chain stays where it was when the parameters move.
    moved, state, _ = one_more(key, first, x + 1)
    np.testing.assert_allclose(moved, first.position - x - 1, rtol=1e-5)
    np.testing.assert_allclose(state.position, first.position, rtol=1e-5)
    cold = lejax.sgld(1, 0.1)
    displacement, state, _ = jitted(cold)(key, cold.init(x), x)
    np.testing.assert_array_equal(displacement, 0)
    assert state == ()


def test_a_warm_chain_follows_moving_parameters():
    """Algorithm 1 by a carried chain reaches the minimiser of F, here that of f."""

    def f(x):
        return 0.5 * jnp.sum((x - 2.0) ** 2)

    tau = 0.4
    tx = optax.chain(
        lejax.local_entropy(
            lejax.sgld(300, 0.1, warm_start=True), tau, key=jax.random.key(0)
        ),
        optax.sgd(tau),
    )

    def update(carry, _):
        x, state = carry
        updates, state = tx.update(None, state, x, value_fn=f)
        return (optax.apply_updates(x, updates), state), x

    x = jnp.zeros(64)
    _, path = jax.lax.scan(update, (x, tx.init(x)), length=60)
    assert_mean(path[-1], 2.0)


def test_the_transformation_carries_the_chain():
    """Its second update starts where its first ended, bit for bit."""

    def f(x):
        return 0.5 * jnp.sum(x**2)

    key, x = jax.random.key(3), jnp.array([2.0, -1.0])
    sampler = lejax.sgld(20, 0.1, warm_start=True)
    tx = lejax.local_entropy(sampler, 0.7, key=key)
    update = jax.jit(lambda s, x: tx.update(None, s, x, value_fn=f))
    step = jax.jit(lambda *args: sampler.estimate(*args, value_fn=f, tau=0.7))
    _, first = update(tx.init(x), x)
    grads, second = update(first, x + 0.5)
    _, chain, _ = step(jax.random.fold_in(key, 0), sampler.init(x), x)
    displacement, chain, _ = step(jax.random.fold_in(key, 1), chain, x + 0.5)
    np.testing.assert_allclose(grads, -displacement / 0.7, rtol=1e-5)
    np.testing.assert_allclose(second.sampler.position, chain.position, rtol=1e-6)


def test_inner_batches_take_turns():
    """Move j uses batch j mod K; one batch for all is K = 1."""

    def f(x, batch):
        return jnp.sum(batch) * x

    x, key = jnp.array(0.0), jax.random.key(0)
    batches = jnp.array([[1.0, 0.0], [0.0, 10.0], [50.0, 50.0]])
    cold = dict(temperature=1e-12)

    def run(batch, **options):
        sampler = lejax.sgld(5, 0.1, **cold, **options)
        step = functools.partial(sampler.estimate, value_fn=f, batch=batch, tau=1e9)
        return jax.jit(step)(key, (), x)[0]

    # Without curvature and noise: x_j = -(ε/2) Σ_{i<j} slope_i.
    slopes = np.array([1.0, 10.0, 100.0, 1.0])
    path = -0.05 * np.concatenate([[0.0], np.cumsum(slopes)])
    np.testing.assert_allclose(run(batches, inner_batches=True), path.mean(), rtol=1e-4)
    np.testing.assert_allclose(
        run(batches[:1], inner_batches=True), run(batches[0]), rtol=1e-6
    )
    np.testing.assert_allclose(
        run(np.asarray(batches), inner_batches=True), path.mean(), rtol=1e-4
    )


def test_aux_with_inner_batches_is_that_of_the_first():
    def f(x, batch):
        return jnp.sum(batch) * x**2, {"first": batch}

    sampler = lejax.sgld(5, 0.1, inner_batches=True)
    batches = jnp.array([[1.0, 0.0], [0.0, 10.0]])
    fn = lejax.value_and_grad(f, sampler, 0.7, has_aux=True)
    (_, info), _ = jax.jit(fn)(jnp.array(1.0), jax.random.key(0), batches)
    np.testing.assert_array_equal(info.aux["first"], batches[0])
    assert info.num_evaluations == 6


def test_info_says_what_a_chain_knows():
    sampler = lejax.sgld(10, 0.1)
    x = jnp.array(1.0)
    step = functools.partial(sampler.estimate, value_fn=lambda x: x**2, tau=0.5)
    _, _, info = jax.jit(step)(jax.random.key(0), sampler.init(x), x)
    assert info.num_evaluations == 10
    assert info.nonfinite_fraction == 0
    for field in (info.objective, info.standard_error, info.effective_sample_size):
        assert np.isnan(field)
