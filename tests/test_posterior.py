"""The loss of an inverse problem: its value, what reaches its posterior, bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.problems import assert_mean, replicate
from scipy.stats import multivariate_normal

import lejax

pytestmark = pytest.mark.standard
MATRIX = np.array([[2.0, 0.3], [0.3, 0.5]])
Y = np.array([1.0, -2.0])


def nothing_known(u):
    del u
    return jnp.zeros(())


@pytest.mark.parametrize("covariance", [0.25, np.array([0.1, 4.0]), MATRIX])
def test_it_is_the_density_of_scipy(covariance):
    """But for constants: differences are those of the exact densities."""
    f = lejax.negative_log_posterior(
        lambda u: jnp.array([u[0] * u[1], jnp.sin(u[0])]),
        lambda u: -jnp.sum(jnp.abs(u)) / 3,
        Y,
        covariance,
    )

    def exact(u):
        mean = np.array([u[0] * u[1], np.sin(u[0])])
        matrix = covariance if np.ndim(covariance) else np.full(2, covariance)
        matrix = matrix if np.ndim(matrix) == 2 else np.diag(matrix)
        prior = -np.abs(u).sum() / 3
        return -multivariate_normal(mean, matrix).logpdf(Y) - prior

    points = np.random.default_rng(0).normal(size=(10, 2))
    found = jax.jit(jax.vmap(f))(jnp.asarray(points, jnp.float32))
    expected = np.array([exact(u) for u in points])
    np.testing.assert_allclose(
        found - found[0], expected - expected[0], rtol=1e-4, atol=1e-4
    )


def test_observations_may_be_traced_and_of_any_shape():
    @jax.jit
    def f(u, y, gamma):
        of = lejax.negative_log_posterior(
            lambda u: u * jnp.ones((2, 3)), lambda u: -(u**2) / 2, y, gamma
        )
        return of(u)

    y = jnp.arange(6.0).reshape(2, 3)
    matrix = jnp.eye(6) * 0.5
    found = [f(2.0, y, gamma) for gamma in (0.5, jnp.full((2, 3), 0.5), matrix)]
    np.testing.assert_allclose(found, ((y - 2) ** 2).sum() + 2, rtol=1e-6)


@pytest.mark.parametrize("tau", [pytest.param(0.05, marks=pytest.mark.slow), 0.4])
def test_map_by_both_regularisations(tau):
    """Of a quadratic local entropy and heat keep the minimiser: the MAP."""
    forward = jnp.array([[1.0, 2.0], [0.5, -1.0], [0.0, 1.0]])
    y = jnp.array([1.0, 0.5, -0.3])
    f = lejax.negative_log_posterior(
        lambda u: forward @ u, lambda u: -jnp.sum(u**2) / 2, y, 0.25
    )
    hessian = forward.T @ forward / 0.25 + jnp.eye(2)
    exact = jnp.linalg.solve(hessian, forward.T @ y / 0.25)

    def entropy(key, tau):
        sampler = lejax.importance(200)
        return lejax.local_entropy(sampler, tau, key=key, displacement=True)

    def heat(key, tau):
        return lejax.heat(lejax.score_function(200), tau, key=key)

    for smooth, rate in ((entropy, 0.3), (heat, 0.02)):

        def found(key, tau, smooth=smooth, rate=rate):
            head = smooth(key, tau)
            tx = optax.chain(head, optax.sgd(rate))

            def update(carry, _):
                u, state = carry
                updates, state = tx.update(None, state, u, value_fn=f)
                u = optax.apply_updates(u, updates)
                return (u, state), u

            start = jnp.zeros(2)
            _, path = jax.lax.scan(update, (start, tx.init(start)), length=600)
            return path[300:].mean(0)

        # A nonlinear step of noise: weights of 200 samples are a ratio, of bias 1/J.
        assert_mean(replicate(found, 40, given=(tau,)), exact, bias=4e-3)


def test_a_forward_map_that_fails_costs_samples():
    """As it does where it is not defined."""
    tx = lejax.local_entropy(lejax.importance(400), 0.2, key=jax.random.key(0))
    u = jnp.full(2, 0.3)
    f = lejax.negative_log_posterior(
        lambda u: jnp.log(u), lambda u: -jnp.sum(u**2) / 2, jnp.zeros(2), 0.1
    )
    update = jax.jit(lambda u: tx.update(None, tx.init(u), u, value_fn=f))
    updates, state = update(u)
    assert jnp.isfinite(updates).all()
    assert 0.2 < state.info.nonfinite_fraction < 0.6


def bad(forward=lambda u: u, prior=nothing_known, y=Y, covariance=1.0):
    return lejax.negative_log_posterior(forward, prior, y, covariance)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"y": np.array([1.0, np.nan])}, r"observations has 1 of 2 .*leave out"),
        ({"covariance": np.inf}, r"covariance has 1 of 1 numbers that are not finite"),
        ({"covariance": 0.0}, r"covariance must be positive, got a variance of 0"),
        ({"covariance": np.array([1.0, -1])}, r"covariance must be positive"),
        ({"covariance": np.ones(3)}, r"covariance has shape \(3,\) for .*\(2, 2\)"),
        ({"covariance": np.eye(3)}, r"covariance has shape \(3, 3\)"),
        ({"covariance": np.array([[1, 0.5], [0, 1]])}, r"covariance is not symmetric"),
        ({"covariance": np.array([[1.0, 2], [2, 1]])}, r"not positive definite.*-1"),
        ({"covariance": np.array([[1.0, 1], [1, 1]])}, r"not positive definite"),
        ({"y": Y * 1j}, r"observations must be real"),
        ({"covariance": -1e-50}, r"got a variance of -1e-50"),
    ],
)
def test_bad_problems(arguments, said):
    with pytest.raises(ValueError, match=said):
        bad(**arguments)
    # Under jit as well, where they are known.
    with pytest.raises(ValueError, match=said):
        jax.jit(lambda u: bad(**arguments)(u))(jnp.ones(2))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (
            {"forward": lambda u: u[:1]},
            ValueError,
            r"forward returned .*\(1,\).*\(2,\)",
        ),
        ({"forward": lambda u: u[:, None]}, ValueError, r"forward returned"),
        ({"forward": lambda u: u * 1j}, TypeError, r"forward must return real"),
        ({"prior": lambda u: u}, TypeError, r"log_prior must return a scalar.*sum"),
        ({"prior": lambda u: u[0] * 1j}, TypeError, r"log_prior must return real"),
    ],
)
def test_bad_functions(arguments, error, said):
    with pytest.raises(error, match=said):
        bad(**arguments)(jnp.ones(2))


def test_units_of_a_matrix_do_not_matter():
    """Variances of 10¹⁰ and 10⁻¹⁰ side by side are no fault."""
    scales = np.array([1e5, 1e-5])
    matrix = np.outer(scales, scales) * np.array([[1.0, 0.5], [0.5, 1.0]])
    f = bad(covariance=matrix, forward=lambda u: u * jnp.asarray(scales), y=scales)
    plain = bad(covariance=np.array([[1.0, 0.5], [0.5, 1.0]]), y=np.ones(2))
    u = jnp.array([0.3, -2.0])
    np.testing.assert_allclose(f(u), plain(u), rtol=1e-5)


def test_small_numbers_and_narrow_dtypes():
    """Half precision is widened; what single precision holds is not lost on the way."""
    half = jnp.ones(1, jnp.bfloat16)
    f = bad(forward=lambda u: u + 1e-3, y=half, covariance=jnp.asarray(1e-6))
    np.testing.assert_allclose(f(jnp.ones(1)), 0.5, rtol=1e-3)
    assert f(half).dtype == jnp.float32
    # What was observed keeps its digits beside a prediction of half precision.
    f = bad(y=np.full(1, 1.01), covariance=1e-4)
    np.testing.assert_allclose(f(half), 0.5, rtol=1e-4)
    f = bad(y=np.full(1, 1e-25), covariance=1e-50)
    np.testing.assert_allclose(f(jnp.zeros(1)), 0.5, rtol=1e-5)
    with jax.enable_x64(True):
        f = bad(y=jnp.ones(1, jnp.float32), covariance=jnp.float32(1))
        np.testing.assert_allclose(f(np.ones(1) + 1e-9), 0.5e-18, rtol=1e-5)


def test_no_array():
    for wrong in ({"a": 1.0}, "a", [[1.0], [1.0, 2.0]]):
        with pytest.raises(TypeError, match="observations must be an array of numbers"):
            bad(y=wrong)


def test_a_smooth_covariance():
    """Positive definite in double precision, and hardly in single."""
    places = np.linspace(0, 1, 40)
    matrix = np.exp(-np.abs(places[:, None] - places) * 2) + 1e-6 * np.eye(40)
    f = bad(y=np.zeros(40), covariance=matrix)
    u = np.random.default_rng(0).normal(size=40)
    exact = u @ np.linalg.solve(matrix, u) / 2
    np.testing.assert_allclose(f(jnp.asarray(u, jnp.float32)), exact, rtol=1e-4)
