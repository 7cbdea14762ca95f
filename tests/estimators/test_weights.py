"""What J losses say: weights, free energy, average, and the errors they report."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cases.problems import assert_mean, replicate

import lejax
from lejax._estimators.plan import Plan, make_units
from lejax._estimators.weights import (
    average,
    importance_weights,
    pareto_shape,
    told_error,
)

ONE = (jnp.zeros(1),)


def plan_of(num_samples, antithetic=True, signs=1, **options):
    plan = Plan(num_samples, antithetic, None, signs)
    return make_units(plan, ONE, None, **options)


@functools.partial(jax.jit, static_argnames=("antithetic", "signs"))
def weights_of(losses, beta=1.0, antithetic=True, signs=1):
    units = plan_of(len(losses), antithetic, signs, exact=True)
    return importance_weights(losses, units, jnp.asarray(beta, losses.dtype))


@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize("beta", [1.0, 30.0])
def test_large_losses_neither_overflow_nor_lose_the_answer(offset, beta):
    losses = jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.float32)
    # What float32 keeps of the shifted ones.
    shifted = losses + offset
    truth, found = weights_of(shifted - offset, beta), weights_of(shifted, beta)
    assert np.isfinite(found.free_energy)
    np.testing.assert_allclose(found.free_energy - offset, truth.free_energy, atol=2e-3)
    np.testing.assert_allclose(found.shares, truth.shares, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(
        found.effective_sample_size, truth.effective_sample_size, rtol=1e-5
    )


@pytest.mark.parametrize("num_samples", [400, 1000, 10_000])
@pytest.mark.parametrize("beta", [1e-4, 1e-2])
def test_nearly_equal_losses_keep_their_digits(num_samples, beta):
    """F of f ≡ 3 is 3, and of f = 3 + noise to its own error."""
    flat = weights_of(jnp.full(num_samples, 3.0), beta)
    assert flat.free_energy == 3
    assert flat.standard_error == 0
    noise = np.random.default_rng(1).normal(size=num_samples)
    losses = (3 + 0.01 * noise).astype(np.float32)
    found = weights_of(jnp.asarray(losses), beta)
    exact = losses.astype(np.float64)
    exact = -np.log(np.exp(-beta * (exact - 3)).mean()) / beta + 3
    assert abs(found.free_energy - exact) < 0.01 * found.standard_error + 5e-7
    units = losses.astype(np.float64).reshape(-1, 2).mean(1)
    error = units.std(ddof=1) / np.sqrt(len(units))
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-3)


@pytest.mark.parametrize("antithetic", [True, False])
def test_errors_of_few_units_are_exact(antithetic):
    """Against the weights themselves: P units, their spread with P - 1."""
    losses = jnp.asarray(np.random.default_rng(0).normal(size=8), jnp.float32)
    found = weights_of(losses, 1.3, antithetic)
    w = np.exp(-1.3 * np.asarray(losses, np.float64))
    units = w.reshape(4, 2).sum(1) if antithetic else w
    error = units.std(ddof=1) / np.sqrt(len(units)) / units.mean() / 1.3
    np.testing.assert_allclose(found.free_energy, -np.log(w.mean()) / 1.3, rtol=1e-5)
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-4)
    np.testing.assert_allclose(found.shares, w / w.sum(), rtol=1e-5)


def test_an_odd_sample_out_is_a_unit_of_half_the_size():
    """Equal losses have no error, although the units' weights differ."""
    assert list(plan_of(5, exact=True).sizes) == [2, 2, 1]
    assert weights_of(jnp.zeros(5)).standard_error == 0


def test_a_single_unit_has_no_standard_error():
    assert np.isnan(weights_of(jnp.arange(2.0)).standard_error)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_failed_losses_have_no_weight(bad):
    found = weights_of(jnp.array([1.0, bad, 2.0, 3.0]))
    assert found.shares[1] == 0
    assert found.failed_fraction == 0.25
    rest = np.exp(-np.array([1.0, 2.0, 3.0])).sum() / 4
    np.testing.assert_allclose(found.free_energy, -np.log(rest), rtol=1e-6)
    nothing = weights_of(jnp.full(4, bad))
    assert nothing.effective_sample_size == 0
    assert nothing.free_energy == np.inf


def test_a_loss_of_minus_infinity_has_all_the_weight():
    found = weights_of(jnp.array([1.0, -np.inf, 2.0, 3.0]))
    assert found.free_energy == -np.inf
    assert found.effective_sample_size == 0
    assert (found.shares == 0).all()


@pytest.mark.parametrize("penalty", [1e30, 3e38])
def test_a_penalty_costs_no_more_than_infinity(penalty):
    losses = [1.0, 2.0, 1.5, 1.2]
    penalised, infinite = (
        weights_of(jnp.array([*losses, bad]), 0.7) for bad in (penalty, np.inf)
    )
    np.testing.assert_array_equal(penalised.shares, infinite.shares)
    np.testing.assert_array_equal(penalised.free_energy, infinite.free_energy)


@pytest.mark.parametrize("num_samples", [40, 41, 1001])
def test_what_fills_up_changes_nothing(num_samples):
    """One that fills up the last pair, or a chunk, is as if it were not there."""
    filled, exact = plan_of(num_samples), plan_of(num_samples, exact=True)
    assert filled.num_samples == exact.num_samples == num_samples
    losses = np.random.default_rng(0).normal(size=num_samples).astype(np.float32)
    laid = np.full(sum(p.units * p.signs * p.copies for p in filled.parts), 7.0, "f4")
    laid[:num_samples] = losses
    for function in (
        lambda f, units: importance_weights(f, units, jnp.float32(1.0)),
        average,
    ):
        a, b = function(jnp.asarray(laid), filled), function(jnp.asarray(losses), exact)
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(
                x[:num_samples] if x.ndim else x, y, rtol=1e-5, atol=1e-7
            )


@pytest.mark.parametrize("pairs", [True, False])
def test_the_standard_error_of_an_average(pairs):
    """From P independent units it is their standard deviation over √P, with P - 1."""
    losses = np.random.default_rng(0).normal(3.0, 2.0, 10).astype(np.float32)
    found = average(jnp.asarray(losses), plan_of(10, pairs))
    units = losses.reshape(5, 2).mean(1) if pairs else losses
    np.testing.assert_allclose(found.objective, losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        found.standard_error, units.std(ddof=1) / np.sqrt(len(units)), rtol=1e-5
    )


@pytest.mark.parametrize("shape", [0.3, 0.9])
def test_the_shape_of_a_tail(shape):
    """k̂ of weights whose tail is Pareto's, whose moments from 1/k on are infinite."""

    def fitted(key):
        weights = jax.random.uniform(key, (4000,)) ** -shape
        return pareto_shape(weights / weights.sum(), plan_of(4000, False))

    found = replicate(fitted, 300)
    # The prior of ten samples at a half among 190, and no more.
    expected = (190 * shape + 5) / 200
    assert abs(found.mean() - expected) < 0.03
    assert found.std() < 1.2 * (1 + shape) / np.sqrt(190)


def test_the_shape_of_a_tail_is_that_of_a_fit_by_likelihood():
    weights = np.sort(np.random.default_rng(3).uniform(size=9000) ** -0.6)
    found = pareto_shape(jnp.asarray(weights / weights.sum(), "f4"), plan_of(9000))
    tail = 3 * int(np.ceil(np.sqrt(9000)))
    above = weights[-tail:] - weights[-tail - 1]
    shape, *_ = scipy.stats.genpareto.fit(above, floc=0)
    assert abs(found - (tail * shape + 5) / (tail + 10)) < 0.02


def test_weights_without_a_tail():
    assert pareto_shape(jnp.full(100, 0.01), plan_of(100)) == 0
    assert np.isnan(pareto_shape(jnp.full(10, 0.1), plan_of(10)))
    bounded = weights_of(jax.random.normal(jax.random.key(0), (1000,)), 0.01)
    assert pareto_shape(bounded.shares, plan_of(1000)) < 0.2


@pytest.mark.parametrize(
    ("pairs", "slope"), [(True, 0.3), (True, 1.0), (False, 0.3), (False, 1.0)]
)
def test_reported_errors_are_those_of_replicates(pairs, slope):
    """The squared error of δ̂ and the standard error of F: odd, even and skewed."""
    count = 1024 if pairs else 512
    sampler = lejax.importance(count, antithetic=pairs)

    def loss(u):
        return slope * (u[0] + 0.5 * u[1] ** 2 + 0.3 * jnp.exp(-u[2]))

    def estimate(key):
        moved, _, info = sampler.estimate(key, (), jnp.zeros(3), value_fn=loss, tau=1.0)
        u = jax.random.normal(key, (512, 3))
        if pairs:
            u = jnp.stack([u, -u], 1).reshape(count, 3)
        return moved, info, weights_of(jax.vmap(loss)(u), 1.0, pairs)

    moved, info, weights = replicate(estimate, 4000)
    # Both formulas are of first order in 1/J: allow what they neglect.
    square = ((moved - moved.mean(0)) ** 2).sum(1)
    assert_mean(info.squared_error - square, 0, bias=0.02 * square.mean())
    square = (weights.free_energy - weights.free_energy.mean()) ** 2
    assert_mean(weights.standard_error**2 - square, 0, bias=0.02 * square.mean())


def test_the_error_that_is_told():
    """By effective samples and k̂; none where either says that it is too small."""
    weights = weights_of(jnp.linspace(0, 1, 200))

    def told(effective, shape):
        made = weights._replace(effective_sample_size=jnp.float32(effective))
        return told_error(made, jnp.float32(shape)) / weights.standard_error

    for effective, shape, factor in [
        (100, -0.5, 1.05),
        (100, 0.2, 1.05),
        (25, 0.6, 1 + 0.2 + 0.6),
        (1e6, 0.4, 1.3),
        (25, np.nan, 1.2),
    ]:
        np.testing.assert_allclose(told(effective, shape), factor, rtol=1e-4)
    for effective, shape in [(19.9, 0.1), (1000, 0.7), (1000, 1.2), (0, np.nan)]:
        assert np.isnan(told(effective, shape))


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize(
    "num_samples",
    [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (7, 64)), 101],
)
def test_chunk_size_changes_nothing_but_rounding(antithetic, num_samples):
    def f(x):
        return jnp.sum(jnp.sin(3 * x) + x**2)

    x = jnp.linspace(-1.0, 1.0, 5)
    sampler = lejax.importance(num_samples, chunk_size=1, antithetic=antithetic)

    def run(chunk_size):
        made = dataclasses.replace(sampler, chunk_size=chunk_size)
        step = functools.partial(made.estimate, value_fn=f, tau=0.3, beta=1.7)
        return jax.jit(step)(jax.random.key(3), (), x)

    reference, _, info = run(1)
    assert info.num_evaluations == num_samples
    for chunk_size in (3, 10, None):
        displacement, _, other = run(chunk_size)
        np.testing.assert_allclose(displacement, reference, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other.objective, info.objective, rtol=1e-5)
        np.testing.assert_allclose(
            other.effective_sample_size, info.effective_sample_size, rtol=1e-5
        )
