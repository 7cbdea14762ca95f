"""Entropy-SGD against the recurrences that were published."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.problems import assert_mean, replicate

import lejax

ETA, INNER, ALPHA, MOMENTUM, STEPS = 0.6, 0.2, 0.75, 0.9, 5


def loss(x, batch):
    rows, targets = batch
    return jnp.mean(jnp.log1p((rows @ x - targets) ** 2))


@pytest.mark.parametrize(("gamma_0", "gamma_1"), [(0.5, 0.3), (2.0, -0.1)])
def test_the_published_recurrences(gamma_0, gamma_1):
    """Algorithm 1 of Chaudhari et al. in NumPy, scoping and Nesterov around it."""
    rng = np.random.default_rng(0)
    updates = 4
    rows = rng.normal(size=(updates, STEPS, 6, 3))
    targets = rng.normal(size=(updates, STEPS, 6))

    x, velocity, expected = np.array([1.0, -2.0, 0.5]), np.zeros(3), []
    for k in range(updates):
        gamma = gamma_0 * (1 + gamma_1) ** k
        inner, average = x, x
        for a, y in zip(rows[k], targets[k], strict=True):
            residual = a @ inner - y
            gradient = a.T @ (2 * residual / (1 + residual**2)) / len(y)
            inner = inner - INNER * (gradient - gamma * (x - inner))
            average = (1 - ALPHA) * average + ALPHA * inner
        gradient = x - average
        velocity = MOMENTUM * velocity + gradient
        x = x - ETA * (gradient + MOMENTUM * velocity)
        expected.append(x)

    with jax.enable_x64(True):
        tx = lejax.entropy_sgd(
            ETA,
            lejax.scoping(1 / gamma_0, gamma_1),
            key=jax.random.key(0),
            num_steps=STEPS,
            inner_learning_rate=INNER,
            noise=1e-12,
            averaging=ALPHA,
            momentum=MOMENTUM,
        )

        def update(carry, batch):
            x, state = carry
            moved, state = tx.update(None, state, x, value_fn=loss, batch=batch)
            x = optax.apply_updates(x, moved)
            return (x, state), x

        @jax.jit
        def path(x, batches):
            return jax.lax.scan(update, (x, tx.init(x)), batches)[1]

        found = path(jnp.array([1.0, -2.0, 0.5]), (rows, targets))
        np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("gamma", [0.4, 3.0])
def test_the_thermal_noise(gamma):
    """√η' ε N(0, I) in every inner step: the variance of a step on a quadratic."""
    noise, curvature, x = 0.7, 0.8, 1.5
    # The mean, and the coefficients of the noises, of x' and of μ.
    inner = np.zeros(STEPS + 1)
    inner[0] = x
    average = inner
    for step in range(1, STEPS + 1):
        inner = (1 - INNER * (curvature + gamma)) * inner
        inner[0] += INNER * gamma * x
        inner[step] = np.sqrt(INNER) * noise
        average = (1 - ALPHA) * average + ALPHA * inner

    def step(key, tau):
        tx = lejax.entropy_sgd(
            ETA,
            tau,
            key=key,
            num_steps=STEPS,
            inner_learning_rate=INNER,
            noise=noise,
            averaging=ALPHA,
            momentum=0.0,
            inner_batches=False,
        )
        start = jnp.array(x)
        return tx.update(
            None, tx.init(start), start, value_fn=lambda x: 0.5 * curvature * x**2
        )[0]

    found = replicate(step, 4000, given=(1 / gamma,))
    mean = ETA * (average[0] - x)
    assert_mean(found, mean, bias=1e-5)
    assert_mean((found - mean) ** 2, ETA**2 * (average[1:] @ average[1:]), bias=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_holds_a_step_at_small_gamma(dtype):
    """The gradient itself, γ (x - μ), would be nothing there, and τ infinite."""

    @jax.jit
    def step(x):
        tx = lejax.entropy_sgd(
            0.1, 1e5, key=jax.random.key(0), inner_batches=False, momentum=None
        )

        def f(x):
            return jnp.sum((x.astype(jnp.float32) - 1) ** 2)

        return tx.update(None, tx.init(x), x, value_fn=f)[0]

    x = jnp.array([1.5, -2.0, 0.25])
    found, expected = step(x.astype(dtype)), step(x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0.02)
