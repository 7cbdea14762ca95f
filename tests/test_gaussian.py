"""Gaussians whose mean and covariance are learnt: moments, posteriors, bounds."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    ONE_DIMENSIONAL,
    QUADRATIC,
    assert_mean,
    bimodal,
    replicate,
    skewed,
)

import lejax

pytestmark = pytest.mark.compiles
STRUCTURES = ("scale", "diagonal", "full")
every_structure = pytest.mark.parametrize("covariance", STRUCTURES)
TARGETS = pytest.mark.parametrize(("loss", "x"), [(skewed, 0.5), (bimodal, 0.2)])


def moments(log_density):
    """Mean and variance of a density on the line, by the trapezoidal rule."""
    points = np.linspace(-12, 12, 48_001)
    with jax.enable_x64(True):
        logs = np.asarray(jax.vmap(log_density)(jnp.asarray(points)))
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    mean = weights @ points
    return mean, weights @ (points - mean) ** 2


def updated(loss, x, sampler, tau, key, number=1, **options):
    """Parameters and state after so many updates of a chain of it and a whole step."""
    options = {"covariance_rate": 1.0, **options}
    tx = optax.chain(lejax.gaussian(sampler, tau, key=key, **options), optax.sgd(1.0))

    def update(carry, _):
        x, state = carry
        updates, state = tx.update(None, state, x, value_fn=loss)
        return (optax.apply_updates(x, updates), state), None

    (x, state), _ = jax.lax.scan(update, (x, tx.init(x)), length=number)
    return x, state[0]


@TARGETS
@every_structure
@pytest.mark.parametrize("antithetic", [True, False])
def test_moments_of_the_tilted_density(loss, x, covariance, antithetic):
    """E_q X and Cov_q, with q ∝ exp(-βf) φ, at two τ."""
    beta, taus = 0.7, np.array([0.05, 0.4])

    def found(key, tau):
        sampler = lejax.importance(4000, antithetic=antithetic)
        mean, state = updated(
            loss, jnp.asarray(x), sampler, tau, key, covariance=covariance, beta=beta
        )
        return jnp.stack([mean, state.covariance.variances(mean)])

    for tau in taus:
        truth = moments(lambda y, t=tau: -beta * loss(y) - (y - x) ** 2 / (2 * t))
        samples = replicate(lambda key, t=tau: found(key, t), 300)
        # The bias of a ratio, and of the square of a mean, is about 1/J.
        assert_mean(samples, np.array(truth), bias=np.array(truth[1]) / 4000)


@TARGETS
def test_the_temperature_weighs_by_the_density_as_well(loss, x):
    """q ∝ exp(-β(f + T log φ)) φ, at two τ."""
    beta, temperature = 0.5, 0.8
    for tau in (0.3, 0.7):

        def found(key, tau=tau):
            mean, state = updated(
                loss,
                jnp.asarray(x),
                lejax.importance(4000),
                tau,
                key,
                beta=beta,
                temperature=temperature,
            )
            return jnp.stack([mean, state.covariance.variances(mean)])

        def log_density(y, tau=tau):
            log_phi = -((y - x) ** 2) / (2 * tau)
            return -beta * (loss(y) + temperature * log_phi) + log_phi

        truth = moments(log_density)
        assert_mean(replicate(found, 300), np.array(truth), bias=truth[1] / 4000)


@TARGETS
@every_structure
def test_the_evidence(loss, x, covariance):
    """At β = 1/T the objective is -T log ∫ exp(-f/T), whatever φ is."""
    temperature = 0.8
    points, spacing = np.linspace(-8, 8, 16_001, retstep=True)
    values = np.asarray(jax.vmap(loss)(jnp.asarray(points)))
    truth = -temperature * np.log(np.exp(-values / temperature).sum() * spacing)
    for tau in (0.4, 1.5):

        def found(key, tau=tau):
            _, state = updated(
                loss,
                jnp.asarray(x),
                lejax.importance(4000),
                tau,
                key,
                covariance=covariance,
                beta=1 / temperature,
                temperature=temperature,
            )
            return state.info.objective

        # A logarithm's bias is half of the variance.
        samples = replicate(found, 300)
        assert_mean(samples, truth, bias=float(samples.var()) / temperature)


@TARGETS
def test_the_twin_of_heat(loss, x):
    """Σ'⁻¹ = Σ⁻¹ + ρβ(E_φ f'' - T/Σ), and the mean by Σ'' E_φ f', at two τ."""
    beta, temperature, rho = 0.1, 0.3, 0.5
    for tau in (0.05, 0.4):
        noise, spacing = np.linspace(-10, 10, 8001, retstep=True)
        phi = np.exp(-(noise**2) / 2) * spacing / np.sqrt(2 * np.pi)
        points = jnp.asarray(x + np.sqrt(tau) * noise)
        with jax.enable_x64(True):
            slope = phi @ np.asarray(jax.vmap(jax.grad(loss))(points))
            bend = phi @ np.asarray(jax.vmap(jax.grad(jax.grad(loss)))(points))
        rise = beta * (bend - temperature / tau)

        def found(key, tau=tau):
            mean, state = updated(
                loss,
                jnp.asarray(x),
                lejax.pathwise(2000),
                tau,
                key,
                beta=beta,
                temperature=temperature,
                covariance_rate=rho,
            )
            precision = 1 / state.covariance.variances(mean)
            return jnp.stack([mean, precision])

        mean = x - beta / (1 / tau + rise) * slope
        truth = np.array([mean, 1 / tau + rho * rise])
        # 1/(1 + A) has a bias of the variance of A.
        assert_mean(replicate(found, 300), truth, bias=1e-4)


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


def dense(covariance, like):
    """Σ as a matrix."""
    flat, unravel = jax.flatten_util.ravel_pytree(like)
    columns = [covariance.times(unravel(unit)) for unit in jnp.eye(flat.size)]
    root = np.stack([jax.flatten_util.ravel_pytree(c)[0] for c in columns], 1)
    return root.astype(np.float64) @ root.T


SAMPLERS = {"importance": lejax.importance(2000), "pathwise": lejax.pathwise(200)}
both = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


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


@pytest.mark.parametrize("loss", ONE_DIMENSIONAL.values(), ids=ONE_DIMENSIONAL)
def test_fixed_points(loss):
    """Moments of p ∝ exp(-f/T) by importance; by pathwise E_φ f' = 0, E_φ f'' = T/Σ."""
    temperature, start = 0.7, jnp.asarray(0.8)
    mean, variance = moments(lambda y: -loss(y) / temperature)
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
    noise, spacing = np.linspace(-10, 10, 8001, retstep=True)
    phi = np.exp(-(noise**2) / 2) * spacing / np.sqrt(2 * np.pi)
    points = found + np.sqrt(tau) * jnp.asarray(noise)
    slope = phi @ np.asarray(jax.vmap(jax.grad(loss))(points))
    bend = phi @ np.asarray(jax.vmap(jax.grad(jax.grad(loss)))(points))
    assert abs(slope) * np.sqrt(tau) < 0.03 * temperature
    np.testing.assert_allclose(bend * tau, temperature, rtol=0.03)


@both
def test_a_step_on_a_quadratic(sampler):
    """Σ' = (Σ⁻¹ + βA)⁻¹ and x' = (I + βΣA)⁻¹x, to standard errors, at two τ."""
    x, beta = QUADRATIC.params(), 0.4
    flat = QUADRATIC.flat(x)
    for tau in (0.2, 0.6):
        spread = np.eye(4) + beta * tau * QUADRATIC.matrix
        truth = np.linalg.inv(np.eye(4) / tau + beta * QUADRATIC.matrix)

        def found(key, tau=tau):
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

        means, matrices = replicate(found, 300)
        assert_mean(QUADRATIC.flat(means), np.linalg.solve(spread, flat), bias=2e-3)
        assert_mean(matrices, truth, bias=5e-3)


def test_a_badly_scaled_quadratic():
    """Whose condition number is 10⁴: a full covariance learns it, others do not."""
    size = 20
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    matrix = jnp.asarray((turn * 10.0 ** np.linspace(0, 4, size)) @ turn.T, jnp.float32)

    def loss(x):
        return x @ matrix @ x / 2

    def last(covariance, number):
        found = [
            updated(
                loss,
                jnp.ones(size),
                lejax.importance(60, target_share=0.3),
                1.0,
                jax.random.key(seed),
                number=number,
                covariance=covariance,
                covariance_rate=0.2,
                beta=1e-3,
            )[0]
            for seed in range(3)
        ]
        return max(map(loss, found)), min(map(loss, found))

    worst, _ = last("full", 200)
    assert worst < 1e-2
    for covariance in ("scale", "diagonal"):
        assert last(covariance, 2000)[1] > 10 * worst


def test_nothing_is_lost_where_losses_fail():
    """All of them: nothing moves; some: what is left is finite."""
    start = jnp.array([0.5, -0.5])
    for sampler in (lejax.importance(50), lejax.pathwise(50)):
        run = functools.partial(
            updated, sampler=sampler, tau=0.3, key=jax.random.key(0), covariance="full"
        )
        for bad in (jnp.nan, jnp.inf):
            x, state = run(lambda x, bad=bad: jnp.sum(x) * bad, start, number=3)
            np.testing.assert_array_equal(x, start)
            np.testing.assert_allclose(dense(state.covariance, x), 0.3 * np.eye(2))

        def some(x):
            return jnp.where(x[0] > 0.6, jnp.nan, jnp.sum(x**2) + jnp.sum(x))

        x, state = run(some, start, number=30)
        assert jnp.isfinite(x).all()
        assert np.isfinite(dense(state.covariance, x)).all()
        assert some(x) < some(start)


@every_structure
@both
def test_bounds(sampler, covariance):
    """Of an update, and of the variances for ever."""
    start, loss = jnp.array([1.0, 2.0]), lambda x: 1e4 * jnp.sum(x**2)
    run = functools.partial(
        updated, loss, start, sampler, 1.0, jax.random.key(0), covariance=covariance
    )
    _, state = run(max_change=3.0)
    np.testing.assert_allclose(
        dense(state.covariance, start), np.eye(2) / 3, rtol=1e-4, atol=1e-6
    )
    x, state = run(bounds=(0.01, 5.0), number=20)
    np.testing.assert_allclose(
        dense(state.covariance, start), np.eye(2) / 100, rtol=1e-4, atol=1e-7
    )
    assert state.bounded == 1
    assert jnp.isfinite(x).all()
    # A saddle: along it the variance grows until it may no longer.
    _, state = updated(
        lambda x: x[0] ** 2 - x[1] ** 2,
        jnp.zeros(2),
        sampler,
        0.1,
        jax.random.key(0),
        number=40,
        covariance="full",
        bounds=(0.05, 2.0),
        beta=0.5,
    )
    values = np.linalg.eigvalsh(dense(state.covariance, start))
    np.testing.assert_allclose(values, [0.05, 2.0], rtol=1e-3)


def test_no_step_is_longer_than_the_draws_reach():
    """By √c standard deviations, in the mean square over the directions."""
    steep = functools.partial(jnp.vdot, jnp.array([3e6, 4e6]))
    x, state = updated(
        steep, jnp.zeros(2), lejax.pathwise(10), 0.25, jax.random.key(0), max_change=4.0
    )
    np.testing.assert_allclose(jnp.sum(x**2), 4 * 2 * 0.25, rtol=1e-4)
    np.testing.assert_allclose(x[1] / x[0], 4 / 3, rtol=1e-4)
    assert (x < 0).all()
    assert state.bounded == 0


def test_the_mean_sees_the_whole_curvature():
    """x' = x/(1 + βΣf''), of which the variance takes a part alone."""
    x, _ = updated(
        lambda x: 1e4 * jnp.sum(x**2),
        jnp.array([0.1, 0.2]),
        lejax.pathwise(2000),
        1.0,
        jax.random.key(0),
        max_change=3.0,
    )
    assert jnp.linalg.norm(x) < 0.05


def test_a_share_of_samples_ends_at_the_posterior():
    """β by the share, until it is 1/T."""

    def loss(x):
        return jnp.sum((x - 3) ** 2 * jnp.array([50.0, 2.0])) / 2

    x, state = updated(
        loss,
        jnp.zeros(2),
        lejax.importance(500, target_share=0.5),
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


def test_sums_that_overflow():
    """They teach nothing, and spoil nothing."""
    start = jnp.full(2, 1e-3)
    x, state = updated(
        lambda x: 1e37 * jnp.sum(x**2) / 2,
        start,
        lejax.pathwise(100),
        1.0,
        jax.random.key(0),
    )
    np.testing.assert_array_equal(x, start)
    np.testing.assert_array_equal(state.covariance.scales, 1.0)


def test_large_sums_are_not_kept_by_groups():
    for size, known in ((100, True), (600, False)):
        _, state = updated(
            jnp.sum,
            jnp.zeros(size),
            lejax.importance(100),
            1e-4,
            jax.random.key(0),
            covariance="full",
        )
        assert jnp.isfinite(state.info.signal_error) == known


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


def test_a_temperature_that_rises():
    """β found without it does not stay when there is one."""
    _, state = updated(
        lambda x: jnp.sum(x**2),
        jnp.ones(3),
        lejax.importance(200, target_share=0.5),
        1.0,
        jax.random.key(0),
        number=11,
        temperature=lambda k: jnp.where(k < 10, 0.0, 1.0),
        covariance_rate=0.2,
    )
    np.testing.assert_allclose(state.info.beta_used, 1.0, rtol=1e-6)


def test_leaves_without_numbers_and_of_several_dtypes():
    with jax.enable_x64(True):
        params = {
            "a": jnp.ones(2, jnp.float32),
            "b": jnp.zeros(0),
            "c": jnp.ones((), jnp.float64),
        }
        for covariance in (*STRUCTURES, "low_rank"):
            x, state = updated(
                lambda p: jnp.sum(p["a"]).astype(jnp.float64) ** 2 + p["c"] ** 2,
                params,
                lejax.importance(40),
                0.1,
                jax.random.key(0),
                number=3,
                covariance=covariance,
                rank=1,
            )
            assert x["b"].shape == (0,)
            assert (x["a"] < 1).all()
            leaves = jax.tree.leaves(state.covariance)
            assert all(jnp.isfinite(leaf).all() for leaf in leaves)


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


def test_draws_that_fail_teach_no_curvature():
    """A linear loss that is not defined on one side has none."""
    slope = jnp.array([2.0, 1.0])
    _, state = updated(
        lambda x: jnp.where(x[0] > 0, slope @ x, jnp.nan),
        jnp.zeros(2),
        lejax.pathwise(20_000),
        1.0,
        jax.random.key(0),
        beta=0.2,
        covariance="full",
    )
    np.testing.assert_allclose(
        dense(state.covariance, jnp.zeros(2)), np.eye(2), atol=1e-4
    )


def test_shares_at_a_bound_count_directions():
    _, state = updated(
        lambda p: 1e6 * p["a"] ** 2,
        {"a": jnp.zeros(()), "b": jnp.zeros(999)},
        lejax.pathwise(20),
        1.0,
        jax.random.key(0),
        bounds=(0.5, 2.0),
    )
    np.testing.assert_allclose(state.bounded, 1e-3, rtol=1e-5)


def test_shaped_losses_are_refused():
    with pytest.raises(ValueError, match="covariance can learn from"):
        lejax.gaussian(
            lejax.importance(10, shaping="ranks"), 0.1, key=jax.random.key(0)
        )


def test_schedules():
    """β, T and ρ may be schedules of the number of updates."""
    loss, start = lambda x: jnp.sum(x**2), jnp.ones(2)
    run = functools.partial(
        updated, loss, start, lejax.importance(100), 1.0, jax.random.key(0), number=1
    )
    fixed, of_fixed = run(beta=0.3, temperature=0.5, covariance_rate=0.7)
    named = {"beta": 0.3, "temperature": 0.5, "covariance_rate": 0.7}
    found, of_found = run(**{k: optax.constant_schedule(v) for k, v in named.items()})
    np.testing.assert_allclose(found, fixed, rtol=1e-6)
    np.testing.assert_allclose(
        of_found.covariance.scales, of_fixed.covariance.scales, rtol=1e-6
    )


def test_masks_and_dtypes():
    """Only what the mask says is perturbed; half precision stays what it is."""
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "n": jnp.arange(3)}
    tx = lejax.gaussian(
        lejax.importance(40),
        0.1,
        key=jax.random.key(0),
        covariance="full",
        mask={"w": True, "n": False},
    )
    state = tx.init(params)
    assert state.covariance.root.shape == (6, 6)
    assert state.covariance.root.dtype == jnp.float32
    updates, state = tx.update(
        None, state, params, value_fn=lambda p: jnp.sum(p["w"].astype(jnp.float32) ** 2)
    )
    assert updates["w"].dtype == jnp.bfloat16
    assert (updates["n"] == 0).all()
    assert (updates["w"] > 0).all()  # x - E_q X


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"covariance": "dense"}, "covariance"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 2.0, "beta": 1.0}, r"beta.*1/temperature = 0.5"),
        ({"covariance_rate": 0.0}, "covariance_rate"),
        ({"covariance_rate": 1.5}, "covariance_rate"),
        ({"max_change": 1.0}, "max_change"),
        ({"bounds": (1.0, 2.0)}, r"bounds.*tau=0.1"),
        ({"bounds": 3.0}, "bounds"),
        ({"beta": 0.0}, "beta"),
    ],
)
def test_bad_settings(options, match):
    with pytest.raises(ValueError, match=match):
        lejax.gaussian(lejax.importance(10), 0.1, key=jax.random.key(0), **options)


def test_other_samplers_are_refused():
    for sampler in (lejax.sgld(5, 0.1), lejax.score_function(10)):
        with pytest.raises(ValueError, match="covariance can learn from"):
            lejax.gaussian(sampler, 0.1, key=jax.random.key(0))


def test_large_matrices_are_refused():
    tx = lejax.gaussian(
        lejax.importance(10), 0.1, key=jax.random.key(0), covariance="full"
    )
    with pytest.raises(ValueError, match=r"covariance='full'.*3000 rows"):
        tx.init(jnp.zeros(3000))
