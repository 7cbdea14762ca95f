"""Gaussians learnt at a temperature: posteriors, evidence, fixed points."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.gaussians import (
    PLACES,
    STRUCTURES,
    at_each,
    both,
    crossed,
    dense,
    every_structure,
    of_line,
    slope_and_bend,
    updated,
)
from cases.problems import ONE_DIMENSIONAL, assert_mean, quadrature

import lejax


def with_temperature(loss, x, tau, temperature):
    """F + T log φ, but for a constant."""
    return lambda y: loss(y) - temperature * (y - x) ** 2 / (2 * tau)


def of_density(loss, temperature):
    """Mean and variance of p ∝ exp(-f/T), and -T log ∫ exp(-f/T), by a φ that goes."""
    tau = 4.0
    exact = quadrature(
        with_temperature(loss, 0.0, tau, temperature), 0.0, tau, 1 / temperature
    )
    constant = temperature / 2 * np.log(2 * np.pi * tau)
    return exact.displacement, exact.variance, exact.free_energy - constant


@crossed(("bimodal",), loss=ONE_DIMENSIONAL)
def test_the_temperature_weighs_by_the_density_as_well(loss):
    """q ∝ exp(-β(f + T log φ)) φ, at two τ."""
    x = PLACES[loss]
    found = of_line(loss, lejax.importance(4000), beta=0.5, temperature=0.8)
    taus = (0.3, 0.7)
    for tau, samples in zip(taus, at_each(taus, found, 300, x), strict=True):
        exact = quadrature(with_temperature(loss, x, tau, 0.8), x, tau, 0.5)
        truth = np.array([x + exact.displacement, exact.variance])
        assert_mean(samples, truth, bias=exact.variance / 4000)


@crossed(
    ("skewed", "scale"),
    ("bimodal", "diagonal"),
    ("skewed", "full"),
    loss=ONE_DIMENSIONAL,
    covariance={name: name for name in STRUCTURES},
)
def test_the_evidence(loss, covariance):
    """At β = 1/T the objective is -T log ∫ exp(-f/T), whatever φ is."""
    temperature = 0.8
    x = PLACES[loss]
    _, _, truth = of_density(loss, temperature)

    def found(key, tau, x):
        _, state = updated(
            loss,
            x,
            lejax.importance(4000),
            tau,
            key,
            covariance=covariance,
            beta=1 / temperature,
            temperature=temperature,
        )
        return state.info.objective

    for samples in at_each((0.4, 1.5), found, 300, x):
        # A logarithm's bias is half of the variance.
        assert_mean(samples, truth, bias=float(samples.var()) / temperature)


@pytest.mark.parametrize("widening", [1.4, 2.0])
def test_wider_draws_estimate_the_same(widening):
    """Moments of q and the evidence, at two τ."""
    loss = ONE_DIMENSIONAL["bimodal"]
    x, sampler = PLACES[loss], lejax.importance(4000)
    options = {"beta": 0.5, "temperature": 0.8, "widening": widening}
    found = of_line(loss, sampler, **options)
    for tau, samples in zip(
        (0.3, 0.7), at_each((0.3, 0.7), found, 300, x), strict=True
    ):
        exact = quadrature(with_temperature(loss, x, tau, 0.8), x, tau, 0.5)
        truth = np.array([x + exact.displacement, exact.variance])
        assert_mean(samples, truth, bias=2 * widening * exact.variance / 4000)
    options["beta"] = 1 / 0.8

    def evidence(key, tau, x):
        return updated(loss, x, sampler, tau, key, **options)[1].info.objective

    for samples in at_each((0.4, 1.5), evidence, 300, x):
        truth = of_density(loss, 0.8)[2]
        assert_mean(samples, truth, bias=float(samples.var()) / 0.8)


def test_a_curved_posterior_needs_wider_draws():
    """k̂ tells where Σ comes out too small, whatever the effective samples say."""

    def curved(z):
        return (z[0] / 10) ** 2 / 2 + (z[1] - 0.03 * (z[0] ** 2 - 100)) ** 2 / 2

    deviations = np.array([10.0, np.sqrt(19.0)])

    def learnt(widening):
        head = lejax.gaussian(
            lejax.importance(1000),
            1.0,
            key=jax.random.key(0),
            covariance="full",
            temperature=1.0,
            widening=widening,
        )
        tx = optax.chain(head, optax.sgd(1.0))

        def update(carry, _):
            z, state = carry
            updates, state = tx.update(None, state, z, value_fn=curved)
            z = optax.apply_updates(z, updates)
            told = state[0].covariance.variances(z), state[0].info
            return (z, state), told

        start = jnp.zeros(2), tx.init(jnp.zeros(2))
        _, (variances, info) = jax.lax.scan(update, start, None, length=300)
        found = np.sqrt(variances[100:].mean(0)) / deviations
        return found, info.pareto_k[100:].mean(), info.effective_sample_size[100:]

    narrow, shape, effective = jax.tree.map(np.asarray, learnt(1.0))
    assert narrow[0] < 0.95
    assert narrow[1] < 0.8
    assert effective.mean() > 150
    assert shape > 0.6
    wide, shape, _ = jax.tree.map(np.asarray, learnt(2.0))
    np.testing.assert_allclose(wide, 1, atol=0.05)
    assert shape < 0.3


@pytest.mark.parametrize(
    ("sampler", "widening", "message"),
    [
        (lejax.importance(9), 0.5, "widening must be at least 1, got 0.5"),
        (lejax.pathwise(4), 2.0, "widening=2.0 needs importance weights with the β"),
        (lejax.importance(9, beta_share=0.5), 2.0, "widening=2.0 needs importance"),
        (
            lejax.parallel(lejax.importance(9, beta_share=0.5)),
            2.0,
            "widening=2.0 needs importance",
        ),
    ],
)
def test_bad_widening(sampler, widening, message):
    with pytest.raises(ValueError, match=message):
        lejax.gaussian(sampler, 1.0, key=jax.random.key(0), widening=widening)


@every_structure
def test_the_evidence_of_leaves_of_several_numbers(covariance):
    """-T log ∫ exp(-|u|²/2sT) = -T d/2 log(2πsT); a scale counts for all its leaf."""
    variance, temperature = 0.3, 2.0
    params = {"a": jnp.zeros(3), "b": jnp.zeros((1, 2))}
    _, state = updated(
        lambda u: optax.tree.norm(u, squared=True) / (2 * variance),
        params,
        lejax.importance(200),
        temperature * variance,
        jax.random.key(0),
        covariance=covariance,
        temperature=temperature,
        beta=1 / temperature,
    )
    truth = -temperature * 5 / 2 * np.log(2 * np.pi * variance * temperature)
    np.testing.assert_allclose(state.info.objective, truth, rtol=1e-5)


@both
def test_a_linear_gaussian_posterior(sampler):
    """Mean, covariance and evidence, exactly: weights become equal on the way."""
    rng = np.random.default_rng(2)
    operator, data = rng.normal(size=(6, 4)), rng.normal(size=6)
    noise, prior = 0.3, 2.0
    precision = operator.T @ operator / noise + np.eye(4) / prior
    truth = np.linalg.inv(precision)
    mean = truth @ operator.T @ data / noise
    of_data = operator @ operator.T * prior + noise * np.eye(6)
    evidence = (
        -(
            data @ np.linalg.solve(of_data, data)
            + np.linalg.slogdet(2 * np.pi * of_data)[1]
        )
        / 2
    )

    def minus_log(value, variance):
        size = value.size
        return jnp.sum(value**2) / (2 * variance) + size / 2 * jnp.log(
            2 * jnp.pi * variance
        )

    def loss(u):
        u = jnp.concatenate([u["a"], u["b"]])
        misfit = jnp.asarray(operator, u.dtype) @ u - jnp.asarray(data, u.dtype)
        return minus_log(misfit, noise) + minus_log(u, prior)

    start = {"a": jnp.zeros(1), "b": jnp.zeros(3)}
    found, state = updated(
        loss,
        start,
        sampler,
        0.5,
        jax.random.key(0),
        number=60,
        covariance="full",
        temperature=1.0,
        beta=0.5,
    )
    flat = np.concatenate([found["a"], found["b"]])
    np.testing.assert_allclose(flat, mean, atol=1e-4)
    learnt = dense(state.covariance, start)
    np.testing.assert_allclose(learnt, truth, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        np.concatenate(jax.tree.leaves(state.covariance.variances(start))),
        np.diag(truth),
        rtol=1e-3,
    )
    np.testing.assert_allclose(state.info.objective, -evidence, rtol=1e-4)
    np.testing.assert_allclose(state.info.tau_used, np.trace(truth) / 4, rtol=1e-3)
    assert state.bounded == 0


@crossed(("skewed",), loss=ONE_DIMENSIONAL)
def test_fixed_points_of_importance(loss):
    """The moments of p ∝ exp(-f/T)."""
    temperature, start = 0.7, jnp.asarray(0.8)
    mean, variance, _ = of_density(loss, temperature)
    found, state = updated(
        loss,
        start,
        lejax.importance(20_000),
        1.0,
        jax.random.key(1),
        number=200,
        temperature=temperature,
        beta=0.5 / temperature,
        covariance_rate=0.05,
    )
    # With β < 1/T the fixed point is that of p^½ φ^½: near p's, and p's at last.
    found, state = updated(
        loss,
        found,
        lejax.importance(100_000),
        state.covariance.variances(found),
        jax.random.key(2),
        number=5,
        temperature=temperature,
        beta=1 / temperature,
    )
    assert abs(found - mean) < 0.02 * np.sqrt(variance)
    np.testing.assert_allclose(state.covariance.variances(found), variance, rtol=0.04)


@crossed(("bimodal",), loss=ONE_DIMENSIONAL)
def test_fixed_points_of_pathwise(loss):
    """E_φ f' = 0 and E_φ f'' = T/Σ."""
    temperature, start = 0.7, jnp.asarray(0.8)
    found, state = updated(
        loss,
        start,
        lejax.pathwise(4000),
        0.1,
        jax.random.key(1),
        number=300,
        temperature=temperature,
        beta=0.05,
    )
    tau = float(state.covariance.variances(found))
    slope, bend = slope_and_bend(loss, float(found), tau)
    assert abs(slope) * np.sqrt(tau) < 0.03 * temperature
    np.testing.assert_allclose(bend * tau, temperature, rtol=0.03)


@pytest.mark.parametrize("options", [{"antithetic": False}, {}], ids=["plain", "odd"])
def test_draws_that_do_not_cancel(options):
    """At a Gaussian p the weights are equal, and the mean of the draws is no news."""
    x, state = updated(
        lambda x: jnp.sum(x**2) / 2,
        jnp.full(5, 0.3),
        lejax.importance(1001, **options),
        0.5,
        jax.random.key(0),
        number=30,
        covariance="full",
        temperature=1.0,
    )
    np.testing.assert_allclose(x, 0, atol=1e-5)
    np.testing.assert_allclose(dense(state.covariance, x), np.eye(5), atol=1e-4)
    assert state.info.squared_error < 1e-8


def test_a_share_of_samples_ends_at_the_posterior():
    """β by the share, until it is 1/T."""

    def loss(x):
        return jnp.sum((x - 3) ** 2 * jnp.array([50.0, 2.0])) / 2

    x, state = updated(
        loss,
        jnp.zeros(2),
        lejax.importance(500, beta_share=0.5),
        1.0,
        jax.random.key(0),
        number=40,
        temperature=1.0,
        beta=1e-3,
    )
    np.testing.assert_allclose(state.info.beta_used, 1.0, rtol=1e-6)
    np.testing.assert_allclose(x, 3.0, atol=1e-3)
    np.testing.assert_allclose(state.covariance.variances(x), [0.02, 0.5], rtol=1e-3)


def test_beta_ends_at_the_density_itself():
    """A schedule of β may go above 1/T."""
    run = functools.partial(
        updated,
        lambda x: jnp.sum(jnp.cosh(x)),
        jnp.ones(2),
        lejax.importance(100),
        1.0,
        jax.random.key(0),
        temperature=0.5,
        number=2,
    )
    found, _ = run(beta=lambda k: jnp.where(k < 1, 2.0, 10.0))
    np.testing.assert_array_equal(found, run(beta=2.0)[0])


def test_a_temperature_that_rises():
    """β found without it does not stay when there is one."""
    _, state = updated(
        lambda x: jnp.sum(x**2),
        jnp.ones(3),
        lejax.importance(200, beta_share=0.5),
        1.0,
        jax.random.key(0),
        number=11,
        temperature=lambda k: jnp.where(k < 10, 0.0, 1.0),
        covariance_rate=0.2,
    )
    np.testing.assert_allclose(state.info.beta_used, 1.0, rtol=1e-6)
