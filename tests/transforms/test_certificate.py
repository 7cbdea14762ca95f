"""The decrease that is certain, against exact free energies of replicates."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from cases.problems import ONE_DIMENSIONAL, QUADRATIC, quadrature, replicate

import lejax
from lejax._transforms.certificate import _student

KEY = jax.random.key(0)


def exact(gradient, tau, beta):
    """An info without noise."""
    one, none = jnp.ones(()), jnp.zeros(())
    return lejax.Info(
        objective=none,
        standard_error=none,
        effective_sample_size=100 * one,
        num_evaluations=jnp.int32(1),
        nonfinite_fraction=none,
        squared_error=none,
        signal=one,
        signal_standard_error=none,
        pareto_k=none,
        tau_used=tau * one,
        beta_used=beta * one,
        gradient=gradient,
    )


@pytest.mark.parametrize(("tau", "beta"), [(0.3, 1.0), (1.7, 0.6), (0.1, 5.0)])
def test_what_is_missing_is_the_divergence(tau, beta):
    """F(x + u) - F(x) = [(|u|² - 2<u, δ>)/2τ - KL(q_x ‖ q_{x+u})]/β.

    The Gaussians q of a quadratic have the same covariance at x and x + u, and means
    that differ by Mu, M = (I + βτA)⁻¹; so KL = <Mu, M⁻¹Mu>/2τ.
    """
    with jax.enable_x64(True):
        x = QUADRATIC.flat(QUADRATIC.params())
        gradient = -QUADRATIC.displacement(x, tau, beta) / (beta * tau)
        u = np.array([0.3, -0.2, 0.1, -0.4]) * np.sqrt(tau)
        found = lejax.certificate(exact(jnp.asarray(gradient), tau, beta), u)
    moved = np.linalg.solve(np.eye(4) + beta * tau * QUADRATIC.matrix, u)
    divergence = moved @ u / (2 * tau)
    decrease = QUADRATIC.free_energy(x, tau, beta) - QUADRATIC.free_energy(
        x + u, tau, beta
    )
    np.testing.assert_allclose(found.decrease, decrease - divergence / beta, rtol=1e-9)
    assert found.inside
    assert found.estimate == found.decrease


def chains(tau, beta):
    """Those that take the gradient as it is, remember others, or see but its signs."""
    momentum = optax.stateless(lambda g, x: jax.tree.map(lambda g: g + 0.05, g))
    return {
        "the whole step": optax.sgd(beta * tau),
        "a short one": optax.sgd(beta * tau / 4),
        "momentum": optax.chain(momentum, optax.sgd(beta * tau / 2)),
        "signs": optax.chain(optax.scale_by_sign(), optax.sgd(0.05 * tau**0.5)),
    }


def certificates(value_fn, x, samples, tau, beta, make_chains, **options):
    """Updates and their certificates, 2000 times, by the names of the chains."""
    sampler = lejax.importance(samples, **options)

    def one(key, x, tau, beta):
        smoothed = lejax.value_and_grad(value_fn, sampler, tau, beta=beta)
        (_, info), gradient = smoothed(x, key)
        info = info._replace(gradient=gradient)
        found = {}
        for name, chain in make_chains(tau, beta).items():
            updates, _ = chain.update(gradient, chain.init(x), x)
            found[name] = updates, lejax.certificate(info, updates), info
        return found

    return replicate(one, 2000, given=(x, tau, beta))


@functools.cache
def of_quadratic(tau, beta, antithetic):
    return certificates(
        QUADRATIC.value_fn,
        QUADRATIC.params(),
        200,
        tau,
        beta,
        chains,
        antithetic=antithetic,
    )


def whole_step(tau, beta):
    return {"the whole step": optax.sgd(beta * tau)}


def check_coverage(found, decrease):
    """The bound is above what is true in 5 % at most."""
    assert found.inside.all()
    assert (np.asarray(found.decrease) > decrease).mean() < 0.05
    assert (np.asarray(found.estimate) > found.decrease).all()


@pytest.mark.parametrize("chain", chains(1.0, 1.0))
@pytest.mark.parametrize(
    ("tau", "beta", "antithetic"), [(0.3, 2.0, True), (1.5, 0.4, False)]
)
def test_coverage_on_a_quadratic(tau, beta, antithetic, chain):
    x = QUADRATIC.params()
    updates, found, _ = of_quadratic(tau, beta, antithetic)[chain]
    at, moved = QUADRATIC.flat(x), QUADRATIC.flat(updates)
    before = QUADRATIC.free_energy(at, tau, beta)
    after = [QUADRATIC.free_energy(at + u, tau, beta) for u in moved]
    check_coverage(found, before - np.array(after))
    # It says something: of SGD nearly always, and never more than there is.
    if "step" in chain:
        assert (np.asarray(found.decrease) > 0).mean() > 0.9


@pytest.mark.parametrize(
    ("name", "tau", "beta"),
    [
        ("skewed", 0.2, 1.0),
        ("bimodal", 0.7, 2.0),
        pytest.param("skewed", 0.7, 2.0, marks=pytest.mark.slow),
        pytest.param("bimodal", 0.2, 1.0, marks=pytest.mark.slow),
    ],
)
def test_coverage_on_skewed_and_bimodal_losses(name, tau, beta):
    value_fn, x = ONE_DIMENSIONAL[name], jnp.array(0.4)
    (made,) = certificates(value_fn, x, 400, tau, beta, whole_step).values()
    updates, found, _ = made
    grid = np.linspace(float(updates.min()), float(updates.max()), 200)
    exactly = [quadrature(value_fn, 0.4 + u, tau, beta).free_energy for u in grid]
    after = np.interp(np.asarray(updates), grid, exactly)
    before = quadrature(value_fn, 0.4, tau, beta).free_energy
    check_coverage(found, before - after)


def test_the_noise_in_the_squared_norm_is_taken_off():
    """Of a short step, whose bound misses little, in 40 dimensions, mostly noise."""
    tau, x = 0.3, jnp.linspace(-0.2, 0.2, 40)

    def short(tau, beta):
        return {"short": optax.sgd(0.02 * tau)}

    updates, found, info = certificates(
        lambda x: jnp.sum(x**2) / 4, x, 100, tau, 1.0, short
    )["short"]
    assert np.mean(info.signal) < 0.6
    moved = np.asarray(x + updates, np.float64)
    decrease = (np.sum(np.asarray(x, np.float64) ** 2) - (moved**2).sum(1)) / 4.6
    check_coverage(found, decrease)
    noise = (1 - info.signal) * jnp.sum(updates**2, 1) / (0.02 * tau)
    assert (np.asarray(found.decrease + noise) > decrease).mean() > 0.15


def test_it_is_of_the_update_that_the_chain_made():
    """From the state of an optimiser, with the leaves of a mask, under jit."""
    smooth = lejax.local_entropy(
        lejax.importance(200),
        0.5,
        key=KEY,
        mask={"a": True, "b": False},
        keep_gradient=True,
    )
    tx = optax.chain(smooth, optax.sgd(0.5))
    x = {"a": jnp.ones(3), "b": jnp.ones(2, jnp.bfloat16)}
    state = tx.init(x)

    def value_fn(x):
        return jnp.sum(x["a"] ** 2) + jnp.sum(x["b"]).astype(jnp.float32)

    @jax.jit
    def update(state, incoming):
        updates, state = tx.update(incoming, state, x, value_fn=value_fn)
        return updates, state, lejax.certificate(state[0].info, updates)

    zeros = optax.tree.zeros_like(x)
    updates, after, found = update(state, zeros)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    np.testing.assert_array_equal(updates["a"], -0.5 * after[0].info.gradient["a"])
    assert found.inside
    assert found.decrease > 0
    # What the estimate held still, may not move.
    _, _, found = update(state, optax.tree.ones_like(x))
    assert not found.inside
    assert np.isneginf(found.decrease)


def test_outside_the_guarantee():
    x = jnp.ones(3)

    def of(make, *args, tau=0.5, **options):
        sampler = make(*args, reduction=False, **options)

        @jax.jit
        def found(x):
            smoothed = lejax.value_and_grad(lambda x: 9 * jnp.sum(x**2), sampler, tau)
            (_, info), gradient = smoothed(x, KEY)
            info = info._replace(gradient=gradient)
            return lejax.certificate(info, -tau * gradient)

        return found(x)

    importance = functools.partial(of, lejax.importance, credit=False)
    for found in (of(lejax.sgld, 20, 0.01), importance(2), importance(12)):
        assert not found.inside
        assert np.isneginf(found.decrease)
    assert importance(4000).inside


def test_more_confidence_is_a_lower_bound():
    x = jnp.ones(3)

    @jax.jit
    def found(x):
        sampler = lejax.importance(200, reduction=False, credit=False)
        smoothed = lejax.value_and_grad(lambda x: jnp.sum(x**2), sampler, 0.5)
        (_, info), gradient = smoothed(x, KEY)
        info = info._replace(gradient=gradient)
        return [
            lejax.certificate(info, -gradient / 9, confidence=c).decrease
            for c in (0.6, 0.9, 0.95, 0.99)
        ]

    bounds = [float(bound) for bound in found(x)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[-1] > -np.inf
    for degrees in (5, 7, 20):
        for p in (0.6, 0.9, 0.95, 0.975):
            truth = scipy.stats.t.ppf(p, degrees)
            assert abs(_student(p, degrees) - truth) < 0.005


def test_bad_input():
    info = exact(jnp.ones(3), 0.5, 1.0)
    with pytest.raises(ValueError, match=r"confidence must be between 0.5 and 1, got"):
        lejax.certificate(info, jnp.ones(3), confidence=95)
    with pytest.raises(ValueError, match=r"updates must have the structure"):
        lejax.certificate(info, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"keep_gradient=True"):
        lejax.certificate(info._replace(gradient=None), jnp.ones(3))
