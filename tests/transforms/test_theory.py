"""What the paper proves of the two regularisations, held against the estimators."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.problems import ONE_DIMENSIONAL, assert_mean, quadrature

import lejax

MANY, FEWER = lejax.importance(4000), lejax.importance(1000)
ROBBINS_MONRO = lejax.robbins_monro(
    1000, 10, lambda j: 1 / (5.0 + j.astype(jnp.float32))
)


def well(x):
    """A bounded loss with one well."""
    return 1 - jnp.exp(-(x**2))


@functools.cache
def estimates(sampler, f, heat):
    """256 independent ones, of x, τ and β that are traced."""

    def one(key, x, tau, beta):
        (value, _), grad = lejax.value_and_grad(
            f, sampler, tau, beta=1.0 if heat else beta
        )(x, key)
        return value, grad

    return jax.jit(
        lambda *given: jax.vmap(one, (0, None, None, None))(
            jax.random.split(jax.random.key(0), 256), *given
        )
    )


def smoothed(sampler, f, x, tau, beta=1.0):
    """Values and gradients of independent estimates at x."""
    heat = sampler.regularization == "heat"
    return map(np.asarray, estimates(sampler, f, heat)(x, tau, beta))


@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
@pytest.mark.parametrize(("tau", "beta"), [(0.3, 1.0), (1.7, 2.0)])
def test_gradient_is_that_of_the_free_energy(name, tau, beta):
    """Equation (3.5) with β: (x - E_q[X])/βτ is the slope of F."""
    f, x, h = ONE_DIMENSIONAL[name], 0.4, 1e-4
    slope = (
        quadrature(f, x + h, tau, beta).free_energy
        - quadrature(f, x - h, tau, beta).free_energy
    ) / (2 * h)
    _, grad = smoothed(MANY, f, x, tau, beta)
    assert_mean(grad, slope, bias=1e-3)


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_sgd_at_rate_beta_tau_is_algorithm_1(beta):
    """An optax chain and the pure step with the same key agree to rounding."""
    f, tau, sampler = ONE_DIMENSIONAL["skewed"], 0.3, lejax.importance(100)
    key = jax.random.key(0)
    # In double precision: of x less than a tenth is left, with fewer digits.
    with jax.enable_x64(True):

        @jax.jit
        def both(x, tau, beta):
            head = lejax.local_entropy(sampler, tau, beta=beta, key=key)
            tx = optax.chain(head, optax.sgd(beta * tau))
            updates, _ = tx.update(None, tx.init(x), x, value_fn=f)
            step = lejax.step_fn(f, sampler, tau, beta=beta)
            expected = step(x, jax.random.fold_in(key, 0))
            return optax.apply_updates(x, updates), expected

        moved, expected = both(0.4, tau, beta)
    np.testing.assert_allclose(moved, expected, rtol=1e-12)


# The gradient at the other τ is that of `test_gradient_is_that_of_the_free_energy`.
@pytest.mark.parametrize("tau", [0.3, pytest.param(1.7, marks=pytest.mark.slow)])
def test_algorithm_1_descends_and_stops_only_at_critical_points(tau):
    """Theorem 3.2, exactly by quadrature and by the estimated step."""
    f, x = ONE_DIMENSIONAL["bimodal"], 1.6
    values = []
    for _ in range(200):
        found = quadrature(f, x, tau)
        values.append(found.free_energy)
        x += found.displacement
    assert (np.diff(values) <= 1e-13).all()
    assert values[0] - values[-1] > 0.1
    _, critical = smoothed(MANY, f, x, tau)
    _, elsewhere = smoothed(MANY, f, x + 0.3, tau)
    assert_mean(critical, 0.0, bias=1e-3)
    assert abs(elsewhere.mean()) > 20 * elsewhere.std() / 16


def test_free_energy_becomes_constant_as_tau_grows():
    """τ → ∞: F_τ forgets x, and its gradient vanishes."""
    gaps, slopes = [], []
    for tau in (1.0, 100.0, 10_000.0):
        here, grad = smoothed(MANY, well, 0.5, tau)
        there, _ = smoothed(MANY, well, 3.0, tau)
        gaps.append(abs(here.mean() - there.mean()))
        slopes.append(abs(grad.mean()))
        assert_mean(here, quadrature(well, 0.5, tau).free_energy, bias=1e-3)
    assert gaps[0] > 0.1
    assert gaps[2] < 2e-3
    assert slopes[2] < 1e-2 * slopes[0]


@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
def test_free_energy_becomes_the_loss_as_tau_vanishes(name):
    f, x = ONE_DIMENSIONAL[name], 0.4
    loss, slope = (float(v) for v in jax.value_and_grad(f)(jnp.array(x)))
    curvature = float(jax.grad(jax.grad(f))(jnp.array(x)))
    for tau in (1e-2, 1e-3):
        value, grad = smoothed(FEWER, f, x, tau)
        # The next term of F_τ - f is τ(f'' - f'²)/2.
        second = 0.5 * tau * (curvature - slope**2)
        assert_mean(value, loss + second, bias=20 * tau**2)
        assert_mean(grad, slope, bias=20 * tau)


@pytest.mark.parametrize("tau", [0.3, 1.7])
def test_free_energy_is_a_marginal_likelihood(tau):
    """(2.4), (2.5): exp(-F_τ) is the likelihood exp(-f) convolved with N(0, τ)."""
    f = ONE_DIMENSIONAL["bimodal"]
    grid = np.linspace(-12, 12, 4001)
    likelihood = np.exp(-np.asarray(jax.vmap(f)(jnp.asarray(grid, jnp.float32))))
    kernel = np.exp(-(grid**2) / (2 * tau)) / np.sqrt(2 * np.pi * tau)
    convolved = np.convolve(likelihood, kernel, "same") * (grid[1] - grid[0])
    for x in (-0.6, 0.9):
        value, _ = smoothed(MANY, f, x, tau)
        assert_mean(np.exp(-value), np.interp(x, grid, convolved), bias=1e-4)


@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
@pytest.mark.parametrize(("tau", "betas"), [(0.2, (0.2, 0.02)), (1.3, (2e-3, 2e-4))])
def test_free_energy_becomes_heat_as_beta_vanishes(name, tau, betas):
    """F_{τ,β} → F^H_τ, values and gradients, and differs by O(β)."""
    f, x = ONE_DIMENSIONAL[name], 0.4
    limit = quadrature(f, x, tau)
    truths = [quadrature(f, x, tau, beta) for beta in betas]
    gaps, found = [], []
    for beta, truth in zip(betas, truths, strict=True):
        value, grad = smoothed(MANY, f, x, tau, beta)
        slope = -truth.displacement / (beta * tau)
        assert_mean(value, truth.free_energy, bias=1e-3)
        assert_mean(grad, slope, bias=1e-3)
        gaps.append((limit.heat - truth.free_energy, limit.heat_gradient - slope))
        found.append(np.stack([value, grad]))
    # By the same draws: what the estimates differ by has little noise.
    for difference, wide, narrow in zip(found[1] - found[0], *gaps, strict=True):
        assert_mean(difference, wide - narrow, bias=0.05 * abs(wide))
        assert abs(narrow) < 0.2 * abs(wide)


@pytest.mark.parametrize("tau", [0.15, 0.4])
def test_heat_by_sgd_at_rate_tau_is_algorithm_2(tau):
    """(x_k - x_{k+1})/τ is ∇F^H at x_{k+1}, not at x_k."""
    f, x = ONE_DIMENSIONAL["skewed"], 0.9
    sampler = ROBBINS_MONRO
    _, grad = smoothed(sampler, f, x, tau)
    ahead = quadrature(f, x - tau * float(grad.mean()), tau).heat_gradient
    assert_mean(grad, ahead, bias=1e-2)
    assert abs(ahead - quadrature(f, x, tau).heat_gradient) > 0.1
    key = jax.random.key(0)

    @jax.jit
    def both(x, tau):
        tx = optax.chain(lejax.heat(sampler, tau, key=key), optax.sgd(tau))
        updates, _ = tx.update(None, tx.init(x), x, value_fn=f)
        expected = lejax.step_fn(f, sampler, tau)(x, jax.random.fold_in(key, 0))
        return optax.apply_updates(x, updates), expected

    np.testing.assert_allclose(*both(jnp.array(x), tau), rtol=1e-5)
