"""Samples that fail: parameters stay finite, and the info says what happened."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.problems import assert_mean, replicate

import lejax

TAU = 0.25
GRADIENT_FREE = {
    "importance": lejax.importance(2000),
    "importance, plain": lejax.importance(2000, antithetic=False),
    "importance, centred": lejax.importance(2000, antithetic=False, credit=True),
    "score_function": lejax.score_function(2000),
    "score_function, plain": lejax.score_function(2000, antithetic=False),
}
WITH_GRADIENT = {
    "pathwise": lejax.pathwise(2000),
    "pathwise, plain": lejax.pathwise(2000, antithetic=False),
    "robbins_monro": lejax.robbins_monro(4, 500, 0.3),
    "sgld": lejax.sgld(500, 0.02),
    "sgld, warm": lejax.sgld(500, 0.02, warm_start=True),
}
EVERY = {**GRADIENT_FREE, **WITH_GRADIENT}
every = pytest.mark.parametrize("name", EVERY)
NOWHERE, EVERYWHERE = np.inf, -np.inf


def loss(x, batch):
    """`bad` where x_0 is beyond the wall, and waves of a size elsewhere."""
    wall, bad, size = batch
    value = jnp.sum(x**2 + x) + size * jnp.sin(jnp.sum(x))
    return jnp.where(x[0] > wall, bad, value)


@functools.cache
def updating(name):
    """Of the transformation of the sampler's regularisation, for all such losses."""
    sampler = EVERY[name]
    heat = sampler.regularization == "heat"
    make = lejax.heat if heat else lejax.local_entropy
    tx = make(sampler, TAU, key=jax.random.key(0))
    return jax.jit(
        lambda x, batch: tx.update(None, tx.init(x), x, value_fn=loss, batch=batch)
    )


def update(name, x, wall=NOWHERE, bad=0.0, size=0.0):
    """The first update, and the state."""
    return updating(name)(x, tuple(map(jnp.float32, (wall, bad, size))))


def smoothings(f, sampler, tau, replicates):
    """Of `value_and_grad` at 0."""

    def found(key, tau):
        return lejax.value_and_grad(f, sampler, tau)(jnp.array(0.0), key)

    return replicate(found, replicates, given=(tau,))


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_some_samples_fail(name, bad):
    """They are counted; the update is finite and, but for chains, as if never drawn."""
    # About a quarter of the draws around 0.
    grads, state = update(name, jnp.zeros(2), wall=0.3, bad=bad)
    assert np.isfinite(grads).all()
    info = state.info
    assert 0 < info.nonfinite_fraction < 0.6, info
    if name in GRADIENT_FREE or "pathwise" in name:
        share = 0.2743  # P(N(0, 0.25) > 0.3)
        error = np.sqrt(share * (1 - share) / 2000)
        assert abs(info.nonfinite_fraction - share) < 4 * error
        assert np.isfinite(info.objective)
        assert info.effective_sample_size <= 2000 * (1 - info.nonfinite_fraction) + 1


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_sample_fails(name, bad):
    grads, state = update(name, jnp.ones(2), EVERYWHERE, bad)
    info = state.info
    np.testing.assert_array_equal(grads, 0)
    assert info.nonfinite_fraction == 1
    if "sgld" not in name:
        assert info.effective_sample_size == 0
    if "importance" in name:
        assert info.objective == (-np.inf if bad == -np.inf else np.inf)


def test_one_loss_of_minus_infinity_is_an_update_of_zero():
    grads, state = update("importance", jnp.zeros(2), wall=1.2, bad=-np.inf)
    np.testing.assert_array_equal(grads, 0)
    assert state.info.objective == -np.inf
    assert state.info.effective_sample_size == 0
    assert 0 < state.info.nonfinite_fraction < 0.1


# Each value with each other one but once, by default.
pairs_and_taus = pytest.mark.parametrize(
    ("tau", "antithetic"),
    [
        (0.25, True),
        (0.6, False),
        pytest.param(0.25, False, marks=pytest.mark.slow),
        pytest.param(0.6, True, marks=pytest.mark.slow),
    ],
)


@pairs_and_taus
def test_failed_samples_have_weight_zero(antithetic, tau):
    """Local entropy of f is that of f + ∞ on the failures: a truncated Gaussian."""

    def f(x):
        return jnp.where(x > 0.3, jnp.nan, jnp.asarray(0.0, x.dtype))

    grid = np.sqrt(tau) * np.linspace(-10, 10, 200_001)
    phi = np.exp(-(grid**2) / (2 * tau)) * (grid <= 0.3)
    total = np.exp(-(grid**2) / (2 * tau)).sum()
    sampler = lejax.importance(4000, antithetic=antithetic)
    (value, _), grad = smoothings(f, sampler, tau, 200)
    assert_mean(grad, -(phi * grid).sum() / phi.sum() / tau, bias=1e-3)
    assert_mean(value, -np.log(phi.sum() / total), bias=1e-3)


@pairs_and_taus
def test_heat_is_conditional_on_finite_draws(antithetic, tau):
    """Orphans of pairs included: mean, slope, and slope of the conditional mean."""

    def f(x):
        return jnp.where(x > 0.3, jnp.nan, x**2 + x)

    grid = np.sqrt(tau) * np.linspace(-10, 10, 200_001)
    phi = np.exp(-(grid**2) / (2 * tau)) * (grid <= 0.3)
    phi /= phi.sum()
    loss = grid**2 + grid
    mean, centre = (phi * loss).sum(), (phi * grid).sum()

    sampler = lejax.pathwise(1000, antithetic=antithetic)
    (value, info), grad = smoothings(f, sampler, tau, 400)
    assert_mean(value, mean, bias=1e-3)
    assert_mean(grad, (phi * (2 * grid + 1)).sum(), bias=1e-3)
    assert_mean((value - mean) ** 2 - info.standard_error**2, 0, bias=1e-5)
    sampler = lejax.score_function(1000, antithetic=antithetic)
    (value, _), grad = smoothings(f, sampler, tau, 400)
    assert_mean(value, mean, bias=1e-3)
    assert_mean(grad, (phi * (loss - mean) * (grid - centre)).sum() / tau, bias=5e-3)


@every
@pytest.mark.parametrize("size", [1e30, 3e38])
def test_huge_losses_never_reach_the_parameters(name, size):
    x, (grads, state) = jnp.ones(2), update(name, jnp.ones(2), size=size)
    assert np.isfinite(grads).all()
    assert np.isfinite(optax.apply_updates(x, grads)).all()
    assert 0 <= state.info.nonfinite_fraction <= 1


@functools.cache
def stepping(name):
    return jax.jit(lejax.step_fn(loss, EVERY[name], TAU))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in {"pathwise", "sgld"} else pytest.mark.slow
        )
        for name in EVERY
    ],
)
@pytest.mark.parametrize("size", [1e30, 3e38])
def test_huge_losses_never_reach_the_parameters_of_a_step(name, size):
    x, batch = jnp.ones(2), tuple(map(jnp.float32, (NOWHERE, 0.0, size)))
    for _ in range(2):
        x = stepping(name)(x, jax.random.key(1), batch)
        assert np.isfinite(x).all()


def test_a_finite_loss_is_not_counted_because_beta_overflows():
    fn = lejax.value_and_grad(
        lambda x: 1e37 * jnp.sum(x**2), lejax.importance(10), 1.5, beta=20.0
    )
    (_, info), grads = jax.jit(fn)(jnp.ones(2), jax.random.key(0))
    assert info.nonfinite_fraction == 0
    assert np.isfinite(grads).all()


@every
def test_parameters_that_are_not_finite_stay_as_they_are(name):
    x = jnp.array([1.0, jnp.nan])
    grads, _ = update(name, x)
    np.testing.assert_array_equal(grads, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_chain_samples_the_part_where_the_loss_is_finite(bad):
    """Points beyond the wall are refused: none is averaged, none is kept."""

    def f(x, bad):
        return jnp.where(x > 0.3, bad, 0 * x)

    sampler = lejax.sgld(4000, 0.01, warm_start=True)

    def step(key, bad):
        x = jnp.array(0.0)
        out = sampler.estimate(key, sampler.init(x), x, value_fn=f, batch=bad, tau=TAU)
        return out[0], out[1].position, out[2].nonfinite_fraction

    displacement, position, refused = replicate(step, 200, given=(jnp.float32(bad),))
    assert (position <= 0.3).all()
    assert ((refused > 0) & (refused < 0.5)).all()
    grid = np.linspace(-5, 0.3, 100_001)
    phi = np.exp(-(grid**2) / (2 * TAU))
    truth = (phi * grid).sum() / phi.sum()
    # A refused move that stays put has a bias of the order of √ε = 0.1 at the wall.
    assert_mean(displacement, truth, bias=0.03)


def jitted(sampler, f):
    return jax.jit(functools.partial(sampler.estimate, value_fn=f, tau=TAU))


def test_a_chain_whose_end_is_not_finite_restarts():
    sampler, x = lejax.sgld(1, 0.02, warm_start=True), jnp.ones(2)
    state = lejax.SGLDState(jnp.array([1.0, jnp.inf]))
    displacement, state, _ = jitted(sampler, lambda x: jnp.sum(x**2))(
        jax.random.key(0), state, x
    )
    np.testing.assert_array_equal(displacement, 0)
    np.testing.assert_array_equal(state.position, x)


def test_a_refused_start_begins_at_x_one_point_later():
    """With the gradient there: as a cold chain that is one point shorter."""

    def f(x):
        return jnp.sum(x**2)

    x, key = jnp.ones(2), jax.random.key(0)
    lost = lejax.SGLDState(jnp.array([1.0, jnp.inf]))
    sampler = lejax.sgld(3, 0.1, temperature=1e-12, warm_start=True)
    displacement, _, info = jitted(sampler, f)(key, lost, x)
    # x, x, x - ε f'(x)/2
    np.testing.assert_allclose(displacement, -0.1 / 3, rtol=1e-3)
    np.testing.assert_allclose(info.nonfinite_fraction, 1 / 3)
    # x itself, without a draw.
    displacement, _, _ = jitted(lejax.sgld(2, 0.1, warm_start=True), f)(key, lost, x)
    np.testing.assert_array_equal(displacement, 0)


def test_a_schedule_of_tau_that_falls_too_far_stops_the_chain_at_x():
    """Under jit τ is not known: moves with ε ≥ 4τ are refused, the update is zero."""
    tx = lejax.local_entropy(
        lejax.sgld(10, 0.1), lejax.scoping(0.1, 3.0), key=jax.random.key(0)
    )
    step = jax.jit(lambda s, x: tx.update(None, s, x, value_fn=lambda x: jnp.sum(x**2)))
    x = jnp.ones(2)
    grads, state = step(tx.init(x), x)
    assert state.info.nonfinite_fraction == 0
    assert (grads != 0).all()
    for _ in range(3):
        grads, state = step(state, x)
        np.testing.assert_array_equal(grads, 0)
        np.testing.assert_allclose(state.info.nonfinite_fraction, 0.9)
