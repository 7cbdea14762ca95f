"""Losses by their ranks, or standardised, as evolution strategies take them."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.problems import assert_mean, bimodal, replicate, skewed
from scipy import stats

import lejax
from lejax._estimators.fitness_shaping import centered_ranks, standardized

WAYS = ("ranks", "standardized")
every_way = pytest.mark.parametrize("shaping", WAYS)
X = jnp.array([0.4, -1.0, 0.3])
SLOPE = jnp.array([1.0, 2.0, -1.0])


def sampler(num_samples, shaping, **options):
    return lejax.importance(num_samples, shaping=shaping, **options)


def displaced(loss, x, sampler, tau, beta, key=None):
    """The displacement, and the info."""
    key = jax.random.key(0) if key is None else key

    @jax.jit
    def estimate(x, key, tau, beta):
        smoothed = lejax.value_and_grad(loss, sampler, tau=tau, beta=beta)
        (_, info), grad = smoothed(x, key)
        return -beta * tau * grad, info

    return estimate(x, key, tau, beta)


def standard_grid(number=24_001):
    noise, spacing = np.linspace(-12, 12, number, retstep=True)
    return noise, stats.norm.pdf(noise) * spacing


def of_many(loss, x, tau, shaping, beta):
    """The displacement of infinitely many samples on the line, by quadrature."""
    noise, phi = standard_grid()
    losses = np.asarray(jax.vmap(loss)(jnp.asarray(x + np.sqrt(tau) * noise)))
    if shaping == "ranks":
        order = np.argsort(losses)
        below = np.empty_like(phi)
        below[order] = np.cumsum(phi[order]) - phi[order] / 2
        shaped = below - 0.5
    else:
        mean = phi @ losses
        shaped = (losses - mean) / np.sqrt(phi @ (losses - mean) ** 2)
    weights = phi * np.exp(-beta * shaped)
    return np.sqrt(tau) * (weights @ noise) / weights.sum()


@pytest.mark.parametrize(
    ("shaping", "loss", "x", "antithetic"),
    [
        ("ranks", skewed, 0.5, True),
        ("standardized", bimodal, 0.2, True),
        pytest.param("ranks", skewed, 0.5, False, marks=pytest.mark.slow),
        pytest.param("standardized", skewed, 0.5, False, marks=pytest.mark.slow),
        pytest.param("ranks", bimodal, 0.2, False, marks=pytest.mark.slow),
        pytest.param("ranks", bimodal, 0.2, True, marks=pytest.mark.slow),
        pytest.param("standardized", skewed, 0.5, True, marks=pytest.mark.slow),
        pytest.param("standardized", bimodal, 0.2, False, marks=pytest.mark.slow),
    ],
)
def test_against_quadrature(shaping, loss, x, antithetic):
    """But for the bias of 1/J that shaping by each other leaves, which two J tell."""
    beta, taus = 0.7, (0.05, 0.4)
    with jax.enable_x64(True):
        truth = np.array([of_many(loss, x, tau, shaping, beta) for tau in taus])

    def without_bias(key, tau):
        few, many = (
            displaced(
                loss,
                jnp.asarray(x),
                sampler(samples, shaping, antithetic=antithetic),
                tau,
                beta,
                key,
            )[0]
            for samples in (500, 2000)
        )
        return (4 * many - few) / 3

    def at(key):
        return jax.lax.map(lambda tau: without_bias(key, tau), jnp.asarray(taus))

    assert_mean(replicate(at, 1000), truth, bias=3e-4)


def test_ranks_see_the_order_alone():
    """Under any increasing function; pairs, shared draws, an odd one out.

    In double precision, in which the cube below keeps the order of all readings, and in
    dimensions enough for copies of a draw under signs to differ.
    """
    x = np.random.default_rng(0).normal(size=12)
    slope = np.arange(1.0, 13.0) / 12

    def reading(x):
        return x @ slope

    def cubed(x):
        return 1e3 * reading(x) ** 3 - 5e4

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        for options in (
            {"antithetic": False},
            {"signs_per_draw": 5, "chunk_size": 7},
        ):
            ranked = sampler(101, "ranks", reduction=False, **options)
            one, info = displaced(reading, x, ranked, 0.3, 2.0)
            two, _ = displaced(cubed, x, ranked, 0.3, 2.0)
            np.testing.assert_allclose(one, two, rtol=1e-12)
            assert info.num_evaluations == 101


def test_standardised_is_local_entropy_at_another_beta():
    """That at β by the standard deviation of the same losses."""
    tau, beta, key = 0.2, 1.5, jax.random.key(3)

    def loss(x):
        return 30 * jnp.cos(x).sum() - 400

    # The same draws under both: without credit, by the same signs.
    one, info = displaced(
        loss, X, sampler(400, "standardized", signs_per_draw=1), tau, beta, key
    )
    mean, square = (
        lejax.value_and_grad(
            fn,
            lejax.importance(400, credit=False, signs_per_draw=1, shaping="ranks"),
            tau=tau,
        )(X, key)[0][1].objective
        for fn in (loss, lambda x: loss(x) ** 2)
    )
    scaled_beta = beta / np.sqrt(float(square) - float(mean) ** 2)
    two, _ = displaced(
        loss,
        X,
        lejax.importance(400, credit=False, signs_per_draw=1),
        tau,
        scaled_beta,
        key,
    )
    np.testing.assert_allclose(one, two, rtol=2e-3)
    np.testing.assert_allclose(info.objective, mean, rtol=1e-6)


@every_way
def test_the_objective_is_the_mean_of_the_losses(shaping):
    """With an honest error, over replicates; of a linear loss it is that at x."""
    tau = 0.3

    def of_key(key):
        plain = sampler(60, shaping, antithetic=False)
        return displaced(lambda x: x @ SLOPE + 7, X, plain, tau, 1.0, key)[1]

    info = replicate(of_key, 2000)
    assert_mean(info.objective, float(X @ SLOPE) + 7)
    spread = np.asarray(info.objective).std()
    np.testing.assert_allclose(
        np.mean(info.standard_error), spread, rtol=4 / math.sqrt(2 * 2000) + 0.01
    )


@pytest.mark.parametrize(("shaping", "members"), [("ranks", 4), ("standardized", 2)])
def test_members_of_an_axis_rank_together(shaping, members):
    def at(axis_name):
        # What only fills up a share must not take the place of the odd one out.
        shared = sampler(51, shaping, axis_name=axis_name, signs_per_draw=1)
        return displaced(lambda x: jnp.sin(3 * x).sum(), X, shared, 0.3, 2.0)

    one, info = at(None)
    all_of_them, infos = jax.vmap(
        lambda _: at("members"), axis_name="members", axis_size=members
    )(jnp.arange(members))
    for mine in all_of_them:
        np.testing.assert_allclose(mine, one, rtol=1e-4, atol=1e-6)
    for name in ("objective", "standard_error", "effective_sample_size"):
        np.testing.assert_allclose(getattr(infos, name), getattr(info, name), rtol=1e-4)


@every_way
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_fails_has_no_weight_and_no_rank(shaping, bad):
    """As if it had not been drawn: the others rank among themselves."""

    def loss(x):
        return jnp.where(x[0] > X[0] + 0.8, bad, x @ SLOPE)

    found, info = displaced(loss, X, sampler(4000, shaping, antithetic=False), 0.3, 1.0)
    share = stats.norm.sf(0.8 / np.sqrt(0.3))
    np.testing.assert_allclose(info.nonfinite_fraction, share, atol=0.02)
    assert np.isfinite(found).all()
    assert np.isfinite(info.objective)
    nothing, info = displaced(
        lambda x: jnp.asarray(bad), X, sampler(20, shaping), 0.3, 1.0
    )
    np.testing.assert_array_equal(nothing, 0)
    assert np.isnan(info.objective)
    assert info.effective_sample_size == 0


def test_shapes_of_losses():
    losses = jnp.array([3.0, jnp.nan, 1.0, 1.0, jnp.inf, -5.0])
    np.testing.assert_allclose(
        centered_ranks(losses), [0.5, np.inf, 0, 0, np.inf, -0.5]
    )
    finite = np.array([3.0, 1.0, 1.0, -5.0])
    expected = (finite - finite.mean()) / finite.std()
    found = standardized(losses)
    np.testing.assert_allclose(found[np.array([0, 2, 3, 5])], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[np.array([1, 4])], np.inf)
    widest = jnp.array([3e38, -3e38, -3e38, -3e38])
    np.testing.assert_allclose(
        standardized(widest), [3**0.5] + 3 * [-(3**-0.5)], rtol=1e-5
    )
    for extreme in (1e30, 1e-30):
        np.testing.assert_allclose(
            standardized(extreme * jnp.asarray(finite)), expected, rtol=1e-5
        )
    for same in (centered_ranks, standardized):
        for number in (3, 7, 100):
            np.testing.assert_array_equal(same(jnp.full(number, 0.1)), 0)
        np.testing.assert_array_equal(np.isfinite(same(jnp.ones(1))), True)


@every_way
def test_the_certificate_says_that_it_is_none(shaping):
    _, info = displaced(jnp.linalg.norm, X, sampler(1000, shaping), 0.1, 1.0)
    _, plain = displaced(
        jnp.linalg.norm, X, lejax.importance(1000, credit=False), 0.1, 1.0
    )
    for each, inside in ((info, False), (plain, True)):
        update = -0.01 * X
        found = lejax.certificate(each._replace(gradient=X), update)
        assert bool(found.inside) == inside
        assert np.isneginf(found.decrease) != inside
    assert np.isfinite(info.squared_error)


@pytest.mark.parametrize(
    "shaping", ["ranks", pytest.param("standardized", marks=pytest.mark.slow)]
)
def test_an_error_count_is_minimised(shaping):
    """Whatever its unit: mistakes counted, or a share of them."""
    inputs = jax.random.normal(jax.random.key(0), (200, 10))
    labels = inputs @ jnp.arange(10.0) > 0

    def mistakes(w, scale):
        return scale * jnp.mean((inputs @ w > 0) != labels)

    results = [
        lejax.minimize(
            functools.partial(mistakes, scale=scale),
            jax.random.normal(jax.random.key(2), 10),
            sampler=sampler(200, shaping),
            tau=0.1,
            beta=2.0,
            key=jax.random.key(1),
            num_updates=100,
        )
        for scale in (1.0, 1024.0)
    ]
    np.testing.assert_allclose(results[0].params, results[1].params, rtol=1e-4)
    assert mistakes(results[0].params, 1.0) < 0.05
