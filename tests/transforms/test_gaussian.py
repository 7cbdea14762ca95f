"""Gaussians whose mean and covariance are learnt: moments, steps, noise."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.gaussians import (
    PLACES,
    STRUCTURES,
    TARGETS,
    at_each,
    both,
    crossed,
    dense,
    every_structure,
    of_line,
    slope_and_bend,
    updated,
)
from cases.problems import (
    ONE_DIMENSIONAL,
    QUADRATIC,
    assert_mean,
    quadrature,
    replicate,
)

import lejax


@crossed(
    ("skewed", "scale", "pairs"),
    ("bimodal", "diagonal", "plain"),
    ("skewed", "full", "plain"),
    loss=ONE_DIMENSIONAL,
    covariance={name: name for name in STRUCTURES},
    antithetic={"pairs": True, "plain": False},
)
def test_moments_of_the_tilted_density(loss, covariance, antithetic):
    """E_q X and Cov_q, with q ∝ exp(-βf) φ, at two τ."""
    x = PLACES[loss]
    sampler, taus = lejax.importance(4000, antithetic=antithetic), (0.05, 0.4)
    found = of_line(loss, sampler, covariance=covariance, beta=0.7)
    for tau, samples in zip(taus, at_each(taus, found, 300, x), strict=True):
        exact = quadrature(loss, x, tau, 0.7)
        truth = np.array([x + exact.displacement, exact.variance])
        # The bias of a ratio, and of the square of a mean, is about 1/J.
        assert_mean(samples, truth, bias=exact.variance / 4000)


@TARGETS
def test_the_twin_of_heat(loss, x):
    """Σ'⁻¹ = Σ⁻¹ + ρβ(E_φ f'' - T/Σ), and the mean by Σ'' E_φ f', at two τ."""
    beta, temperature, rho = 0.1, 0.3, 0.5
    found = of_line(
        loss,
        lejax.pathwise(2000),
        beta=beta,
        temperature=temperature,
        covariance_rate=rho,
    )
    taus = (0.05, 0.4)
    for tau, samples in zip(taus, at_each(taus, found, 300, x), strict=True):
        slope, bend = slope_and_bend(loss, x, tau)
        rise = beta * (bend - temperature / tau)
        mean = x - beta / (1 / tau + rise) * slope
        precise = np.stack([samples[:, 0], 1 / samples[:, 1]], 1)
        # 1/(1 + A) has a bias of the variance of A.
        assert_mean(precise, np.array([mean, 1 / tau + rho * rise]), bias=1e-4)


@every_structure
def test_the_covariance_is_damped(covariance):
    """(1 - ρ)Σ + ρ Cov_q + ρ(1 - ρ)(E_q X - x)(E_q X - x)ᵀ, exactly, less its noise."""
    run = functools.partial(
        updated,
        lambda x: jnp.sum(jnp.array([1.0, 3.0]) * (x - 1) ** 2) + x[0] * x[1],
        jnp.array([0.3, -0.5]),
        lejax.importance(100),
        0.5,
        jax.random.key(3),
        covariance=covariance,
        max_change=100.0,
    )

    def matrix(state):
        return dense(state.covariance, jnp.zeros(2))

    mean, whole = run()
    other, part = run(covariance_rate=0.3)
    np.testing.assert_array_equal(mean, other)
    step = np.asarray(mean) - [0.3, -0.5]
    outer = np.outer(step, step)
    if covariance != "full":
        outer = np.diag(np.diag(outer))
    if covariance == "scale":
        outer = np.eye(2) * np.trace(outer) / 2
    outer = outer - 0.5 * float(whole.info.squared_error) / 2 * np.eye(2)
    expected = 0.7 * 0.5 * np.eye(2) + 0.3 * matrix(whole) + 0.21 * outer
    np.testing.assert_allclose(matrix(part), expected, rtol=2e-5)


@both
def test_a_step_on_a_quadratic(sampler):
    """Σ' = (Σ⁻¹ + βA)⁻¹ and x' = (I + βΣA)⁻¹x, to standard errors, at two τ."""
    x, beta = QUADRATIC.params(), 0.4
    flat = QUADRATIC.flat(x)

    def found(key, tau):
        mean, state = updated(
            QUADRATIC.value_fn,
            x,
            sampler,
            tau,
            key,
            covariance="full",
            beta=beta,
            max_change=100.0,
        )
        root = state.covariance.root
        return mean, root @ root.T

    taus = (0.2, 0.6)
    for tau, samples in zip(taus, at_each(taus, found, 300), strict=True):
        means, matrices = samples
        spread = np.eye(4) + beta * tau * QUADRATIC.matrix
        truth = np.linalg.inv(np.eye(4) / tau + beta * QUADRATIC.matrix)
        assert_mean(QUADRATIC.flat(means), np.linalg.solve(spread, flat), bias=2e-3)
        assert_mean(matrices, truth, bias=5e-3)


@pytest.mark.parametrize(
    "other", ["diagonal", pytest.param("scale", marks=pytest.mark.slow)]
)
def test_a_badly_scaled_quadratic(other):
    """Whose condition number is 10⁴: a full covariance learns it, others do not."""
    size = 20
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    matrix = jnp.asarray((turn * 10.0 ** np.linspace(0, 4, size)) @ turn.T, jnp.float32)

    def loss(x):
        return x @ matrix @ x / 2

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def last(covariance, number):
        def found(seed):
            x, _ = updated(
                loss,
                jnp.ones(size),
                lejax.importance(60, beta_share=0.3),
                1.0,
                jax.random.key(seed),
                number=number,
                covariance=covariance,
                covariance_rate=0.2,
                beta=1e-3,
            )
            return loss(x)

        losses = jax.vmap(found)(jnp.arange(3))
        return losses.max(), losses.min()

    worst, _ = last("full", 200)
    assert worst < 1e-2
    assert last(other, 2000)[1] > 10 * worst


def test_draws_are_not_shared():
    """Under other signs the squares are the same: they say nothing new of Σ."""

    def learnt(key, sampler):
        _, state = updated(
            lambda x: jnp.sum(x**2) / 2,
            jnp.zeros(300),
            sampler,
            1.0,
            key,
            beta=0.05,
        )
        return state.covariance.scales**2

    errors = [
        np.std(replicate(functools.partial(learnt, sampler=sampler), 20))
        for sampler in (
            lejax.importance(240),
            lejax.importance(240, signs_per_draw=1),
            lejax.importance(240, signs_per_draw=4),
        )
    ]
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-5)
    assert errors[2] > 1.5 * errors[0]


def test_no_noise_is_taken_for_a_step():
    """Directions that the loss does not see keep their variance, but for noise."""

    def found(key):
        _, state = updated(
            lambda x: x[0], jnp.zeros(20), lejax.importance(200), 1.0, key, beta=1.0
        )
        return state.covariance.variances(jnp.zeros(20))[1:].mean()

    # E δ̂ᵢ² is about 1/ESS, here 1/70: without the correction, 20 standard errors.
    samples = replicate(found, 300)
    assert_mean(samples, 1.0, bias=2e-3)


@crossed(
    ("pairs", "large"),
    ("plain", "small"),
    antithetic={"pairs": True, "plain": False},
    large={"large": True, "small": False},
)
def test_noise_is_that_of_replicates(antithetic, large, monkeypatch):
    """In units of Σ; also where large draws tell it without sums over cross terms."""
    if large:
        monkeypatch.setattr("lejax._samplers.importance.is_large", lambda tree: True)
    sampler = lejax.importance(401, antithetic=antithetic)
    # Nearly all of this step is the same for all draws: without centred weights the
    # noise is about double.
    x = jnp.linspace(-1, 1, 5)

    def found(key, tau):
        beta = 0.2 / tau
        moved, state = updated(
            lambda x: jnp.sum(jnp.cosh(x)) / 2, x, sampler, tau, key, beta=beta
        )
        return (moved - x) / jnp.sqrt(tau), state.info.squared_error

    for moved, told in at_each((0.1, 0.4), found, 1500):
        moved = np.asarray(moved, np.float64)
        squares = ((moved - moved.mean(0)) ** 2).sum(1) * 1500 / 1499
        bias = 0.2 if large else 0.01  # 1/d, of the square of the weights' spread
        assert_mean(told - squares, 0, bias=bias * squares.mean())
