"""Bounds and constraints, as the README says: by failing, projecting, or a bijector."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats
from cases.problems import assert_mean, replicate
from numpyro.distributions import biject_to, constraints
from scipy.special import gammaln

import lejax

pytestmark = pytest.mark.standard
MATRIX = np.random.default_rng(0).normal(size=(8, 4))
TARGET = MATRIX @ np.array([0.7, -0.4, 0.5, 0.0])


def minimised(value_fn, x, project, number=400):
    """The points of a run, at β = 100 and τ = 10⁻³."""
    head = lejax.local_entropy(
        lejax.importance(100),
        1e-3,
        beta=100.0,
        key=jax.random.key(0),
        displacement=True,
    )
    tx = optax.chain(head, optax.sgd(0.3))

    def update(carry, _):
        x, state = carry
        updates, state = tx.update(None, state, x, value_fn=value_fn)
        x = project(optax.apply_updates(x, updates))
        return (x, state), x

    run = jax.jit(lambda x: jax.lax.scan(update, (x, tx.init(x)), length=number))
    return run(x)[1]


def squares(x):
    return jnp.sum((jnp.asarray(MATRIX, jnp.float32) @ x - TARGET) ** 2)


@pytest.mark.parametrize("tau", [0.1, 0.6])
def test_outside_of_a_convex_set_all_fails(tau):
    """Then q has its mean within: here that of a normal on the positive half-line."""

    def found(key, tau):
        step = lejax.step_fn(
            lambda x: jnp.where(x > 0, x, jnp.inf),
            lejax.importance(2000),
            tau,
            beta=2.0,
        )
        return step(jnp.array(0.2), key)

    # exp(-2x) moves the mean by -2τ.
    mean, deviation = 0.2 - 2 * tau, np.sqrt(tau)
    exact = scipy.stats.truncnorm.mean(-mean / deviation, np.inf, mean, deviation)
    assert_mean(replicate(found, 300, given=(tau,)), exact, bias=tau / 500)


def test_no_step_leaves_a_convex_set():
    def f(x):
        return jnp.where((x >= 0).all(), squares(x), jnp.inf)

    path = minimised(f, jnp.full(4, 0.1), lambda x: x)
    assert (path >= 0).all()
    exact, _ = scipy.optimize.nnls(MATRIX, TARGET)
    # The smoothing keeps off the bound by about its width, √τ.
    np.testing.assert_allclose(path[200:].mean(0), exact, atol=0.03)


def test_projection_on_positive_numbers():
    project = optax.projections.projection_non_negative
    path = minimised(lambda x: squares(project(x)), jnp.full(4, 0.1), project)
    exact, _ = scipy.optimize.nnls(MATRIX, TARGET)
    assert (path >= 0).all()
    np.testing.assert_allclose(path[200:].mean(0), exact, atol=0.02)


def test_projection_on_a_simplex():
    project = optax.projections.projection_simplex
    path = minimised(lambda x: squares(project(x)), jnp.full(4, 0.25), project)
    np.testing.assert_allclose(path.sum(1), 1, atol=1e-5)
    assert (path >= 0).all()
    exact = scipy.optimize.minimize(
        lambda x: ((MATRIX @ x - TARGET) ** 2).sum(),
        np.full(4, 0.25),
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
    ).x
    np.testing.assert_allclose(path[200:].mean(0), exact, atol=0.02)


def evidence(value_fn, z, number=60):
    """-log ∫ exp(-f) of the last updates, once Σ is learnt; z is the last mean."""
    sampler = lejax.importance(2000, beta_share=0.5)
    smooth = lejax.gaussian(
        sampler, 0.5, key=jax.random.key(0), covariance="full", temperature=1.0
    )

    def update(carry, _):
        z, state = carry
        updates, state = smooth.update(None, state, z, value_fn=value_fn)
        return (optax.apply_updates(z, optax.tree.scale(-1, updates)), state), (
            state.info.objective
        )

    run = jax.jit(lambda z: jax.lax.scan(update, (z, smooth.init(z)), length=number))
    (z, state), found = run(z)
    assert state.info.beta_used == 1
    return found[number // 2 :], z


def test_a_bijector_of_positive_numbers():
    """Counts of Poisson and a gamma prior: the evidence is known."""
    counts, shape = jnp.array([3.0, 5.0, 2.0, 7.0]), 2.0
    to_positive = biject_to(constraints.positive)

    def f(z):
        rate = to_positive(z)
        log_prior = (shape - 1) * jnp.log(rate) - rate - gammaln(shape)
        log_likelihood = counts.sum() * jnp.log(rate) - 4 * rate
        log_likelihood -= gammaln(np.asarray(counts) + 1).sum()
        volume = to_positive.log_abs_det_jacobian(z, rate)
        return -(log_likelihood + log_prior + volume)

    found, z = evidence(f, jnp.zeros(()))
    after = shape + float(counts.sum())
    exact = gammaln(shape) + gammaln(np.asarray(counts) + 1).sum()
    exact += after * np.log(5.0) - gammaln(after)
    assert_mean(np.asarray(found), exact, bias=1e-4)
    # The mode of the logarithm's density, and of the gamma's by x log x: after/5.
    np.testing.assert_allclose(to_positive(z), after / 5, rtol=0.05)


def test_a_bijector_of_a_simplex():
    """Counts of a multinomial and a Dirichlet prior: likewise."""
    counts, alpha = np.array([3.0, 5.0, 12.0]), np.array([1.0, 2.0, 1.5])
    to_simplex = biject_to(constraints.simplex)

    def f(z):
        weights = to_simplex(z)
        log_prior = gammaln(alpha.sum()) - gammaln(alpha).sum()
        log_prior += jnp.sum((alpha - 1) * jnp.log(weights))
        log_likelihood = jnp.sum(counts * jnp.log(weights))
        volume = to_simplex.log_abs_det_jacobian(z, weights)
        return -(log_likelihood + log_prior + volume)

    found, z = evidence(f, jnp.zeros(2))
    after = alpha + counts
    exact = gammaln(after.sum()) - gammaln(after).sum()
    exact -= gammaln(alpha.sum()) - gammaln(alpha).sum()
    assert_mean(np.asarray(found), exact, bias=1e-4)
    np.testing.assert_allclose(to_simplex(z), after / after.sum(), atol=0.03)
