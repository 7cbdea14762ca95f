"""The three parameters of Lorenz's system of 1963, from averages over time.

The observations are nine first and second moments over a window of 20 units of time,
whose errors come from chaos. Their covariance has two parts: twice the covariance of
such windows at the truth, as the forward map has a window of its own, and an
instrument's, with a tenth of their variances.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from experiments.applications.inverse.problem import InverseProblem

TRUTH = (10.0, 28.0, 8 / 3)
# The prior: lognormal, with these medians and a standard deviation of the logarithm.
MEDIANS, SPREAD = (7.0, 20.0, 2.0), 0.5
STEP, SPIN_UP, WINDOW = 0.01, 500, 2000
START = (1.0, 1.0, 20.0)
WINDOWS = 200


def parameters(u: jax.Array) -> jax.Array:
    """σ, r and b from whitened logarithms."""
    return jnp.asarray(MEDIANS) * jnp.exp(SPREAD * u)


def move(state: jax.Array, rates: jax.Array) -> jax.Array:
    """A Runge-Kutta step of fourth order."""
    sigma, r, b = rates

    def slope(state: jax.Array) -> jax.Array:
        x, y, z = state
        return jnp.stack([sigma * (y - x), x * (r - z) - y, x * y - b * z])

    first = slope(state)
    second = slope(state + STEP / 2 * first)
    third = slope(state + STEP / 2 * second)
    last = slope(state + STEP * third)
    return state + STEP / 6 * (first + 2 * second + 2 * third + last)


def moments(u: jax.Array, start: jax.Array, spin_up: int = SPIN_UP) -> jax.Array:
    """Averages of x, y, z, x², y², z², xy, xz and yz."""
    rates = parameters(u)
    state = jax.lax.fori_loop(0, spin_up, lambda _, s: move(s, rates), start)

    def step(carry: tuple[jax.Array, jax.Array], _: None):
        state, total = carry
        state = move(state, rates)
        x, y, z = state
        seen = jnp.stack([x, y, z, x * x, y * y, z * z, x * y, x * z, y * z])
        return (state, total + seen), None

    (_, total), _ = jax.lax.scan(step, (state, jnp.zeros(9)), length=WINDOW)
    return total / WINDOW


@functools.cache
def problem() -> InverseProblem:
    """The inverse problem of this file."""
    truth = jnp.log(jnp.asarray(TRUTH) / jnp.asarray(MEDIANS)) / SPREAD
    start = jnp.asarray(START)

    def elsewhere(key: jax.Array) -> jax.Array:
        return start + jax.random.normal(key, (3,))

    # Observed windows start elsewhere and spin up longer, so chaos makes them differ.
    windows = jax.vmap(
        lambda key: moments(truth, elsewhere(key), 4 * SPIN_UP),
    )(jax.random.split(jax.random.key(99), WINDOWS))
    instrument = 0.1 * windows.var(0)
    covariance = 2 * jnp.cov(windows.T) + jnp.diag(instrument)

    def observe(key: jax.Array, truth: jax.Array) -> jax.Array:
        where, errors = jax.random.split(key)
        seen = moments(truth, elsewhere(where), 4 * SPIN_UP)
        return seen + jnp.sqrt(instrument) * jax.random.normal(errors, (9,))

    return InverseProblem(
        dimensions=3,
        forward=lambda u: moments(u, start),
        covariance=covariance,
        truth=lambda key: truth,
        observe=observe,
        field=parameters,
        solves=2_000,
        covariances=("diagonal", "full"),
        smooth=False,
        strategies=("CMA_ES",),
    )
