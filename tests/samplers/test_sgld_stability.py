"""Which rates a Langevin chain bears, and what share of a step it finds."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lejax


def path(sampler, curvature, tau, rate, momentum, updates):
    """x of updates on a parabola, from 1."""
    tx = optax.chain(
        lejax.local_entropy(sampler, tau, key=jax.random.key(0)),
        optax.sgd(rate, momentum=momentum),
    )

    def update(carry, _):
        x, state = carry
        updates, state = tx.update(
            None, state, x, value_fn=lambda x: curvature * x**2 / 2
        )
        x = optax.apply_updates(x, updates)
        return (x, state), x

    x = jnp.ones(())
    carry = x, tx.init(x)
    return jax.jit(lambda: jax.lax.scan(update, carry, length=updates)[1])()


def as_matrix(sampler, curvature, tau, rate, momentum):
    """An update of (x, its last step, the chain's start) on a parabola, without noise.

    There a chain is one at τ/(1 + cτ) on a flat loss, about x/(1 + cτ).
    """
    kept, in_mean = sampler.memory(tau / (1 + curvature * tau))
    centre = np.array([1 / (1 + curvature * tau), 0, 0])
    x, start = (
        np.array([1, 0, 0]),
        np.array([0, 0, 1] if sampler.warm_start else [1, 0, 0]),
    )
    mean = (1 - in_mean) * centre + in_mean * start
    step = [0, momentum, 0] + rate / tau * (mean - x)
    return np.array([x + step, step, (1 - kept) * centre + kept * start])


def radius(*settings):
    return np.abs(np.linalg.eigvals(as_matrix(*settings))).max()


@pytest.mark.filterwarnings("ignore:warm_start")
@pytest.mark.parametrize("warm", [True, False])
def test_updates_on_a_parabola_are_a_linear_map(warm):
    """So that its radius tells which rates are stable."""
    fine = {"temperature": 1e-24, "reduction": False, "warm_start": warm}
    short = lejax.sgld(10, 1e-3, **fine)
    long = lejax.sgld(30, lambda j: 2e-2 / (1 + j.astype(float)), averaging=0.3, **fine)
    radii = []
    for sampler in (short, long):
        for tau, ratio, momentum in [
            (0.1, 30.0, 0.9),
            (0.02, 2.5, 0.0),
            (0.02, 1.0, 0.9),
        ]:
            settings = sampler, 1.5, tau, ratio * tau, momentum
            power = as_matrix(*settings)
            at, known = np.array([1.0, 0.0, 1.0]), []
            for _ in range(12):
                at = power @ at
                known.append(at[0])
            found = path(*settings, updates=12)
            np.testing.assert_allclose(found, known, rtol=1e-3, atol=1e-4)
            radii.append(radius(*settings))
    assert (max(radii) > 2) == warm


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("num_steps", [2, 10, 400])
def test_the_largest_stable_rate_of_a_kept_chain(num_steps, momentum):
    """η < βτ(1 + R)(1 + μ)/A on a flat loss, as the docstring has it."""
    sampler = lejax.sgld(num_steps, 1e-3, warm_start=True)
    kept, in_mean = sampler.memory(0.1)
    largest = 0.1 * (1 + kept) * (1 + momentum) / in_mean
    for share, stable in [(0.999, True), (1.001, False)]:
        found = radius(sampler, 1e-9, 0.1, share * largest, momentum)
        assert (found < 1 + 1e-6) == stable
    assert largest >= 0.2 * (1 + momentum)


def test_a_kept_chain_that_forgets_little_is_warned_of():
    """Its rate is not known; behind a displacement it is harmless."""

    def head(num_steps, **options):
        sampler = lejax.sgld(num_steps, 1e-5, **options)
        return functools.partial(
            lejax.local_entropy, sampler, 1e-3, key=jax.random.key(0)
        )

    message = r"at tau=0.001 10 steps keep 0.96 .* above 2 beta tau.* leave warm_start"
    with pytest.warns(UserWarning, match=message) as told:
        head(10, warm_start=True)()
    assert told[0].filename == __file__
    head(10)()
    head(10, warm_start=True)(displacement=True)
    head(1000, warm_start=True)()
    # Nothing is known of steps that are traced.
    for options in ({}, {"averaging": 0.5}):
        jax.eval_shape(
            lambda size, options=options: lejax.local_entropy(
                lejax.sgld(10, lambda j: size, warm_start=True, **options),
                1e-3,
                key=jax.random.key(0),
            ).init(jnp.ones(2)),
            jnp.float32(1e-5),
        )


def test_a_short_chain_by_default():
    """As it diverged when it was kept: a rate of 100τ, a chain of ten points."""
    sampler = lejax.sgld(10, 1e-5, temperature=1e-8)
    found = path(sampler, 1.0, 0.001, 0.1, 0.0, 100)
    assert (np.diff(found) < 0).all()
    sampler = lejax.sgld(20, 1e-4, temperature=1e-8)
    found = path(sampler, 1.0, 0.01, 0.1, 0.9, 200)
    assert np.abs(found).max() <= 1
    assert abs(found[-1]) < 0.1


def test_the_share_that_a_chain_from_x_finds():
    """1 - A of -βτ g, for a constant gradient g."""
    for sampler in (
        lejax.sgld(10, 1e-3, temperature=1e-24),
        lejax.sgld(30, lambda j: 0.1 / (1 + j.astype(float)), temperature=1e-24),
        lejax.sgld(7, 0.02, temperature=1e-24, averaging=0.5),
    ):
        for tau in (0.1, 0.7):
            moved, _, _ = sampler.estimate(
                jax.random.key(0),
                (),
                jnp.zeros(()),
                value_fn=lambda x: 3 * x,
                tau=tau,
                beta=0.5,
            )
            share = 1 - sampler.memory(tau)[1]
            np.testing.assert_allclose(moved, -share * tau * 1.5, rtol=1e-4)
