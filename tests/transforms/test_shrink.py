"""Steps as long as they are signal."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.problems import assert_mean

import lejax

DIMENSION, TAU, BETA = 40, 0.3, 2.0
CURVATURES = jnp.linspace(0.5, 2.0, DIMENSION)


def bowl(x):
    return jnp.sum(CURVATURES * x**2) / 2


def run(make, key, updates=60, **options):
    """The paper's algorithm from (1, …, 1): all parameters, and the infos."""
    tx = optax.chain(
        make(key=key, keep_gradient=True, **options), optax.sgd(BETA * TAU)
    )

    def update(carry, _):
        x, state = carry
        updates, state = tx.update(None, state, x, value_fn=bowl)
        x = optax.apply_updates(x, updates)
        return (x, state), (x, updates, state[0].info)

    x = jnp.ones(DIMENSION)
    return jax.lax.scan(update, (x, tx.init(x)), length=updates)[1]


@pytest.mark.slow
def test_it_helps_where_the_estimate_is_noise():
    """The last steps are at lower F than without it, in nearly all of 100 runs."""

    def make(**options):
        sampler = lejax.importance(100, antithetic=False)
        return lejax.local_entropy(sampler, TAU, beta=BETA, **options)

    def free_energy(x):
        """But for a constant."""
        return (CURVATURES / (1 + BETA * TAU * CURVATURES) * x**2).sum(-1) / 2

    keys = jax.random.split(jax.random.key(0), 100)
    found = {
        shrink: jax.jit(jax.vmap(lambda key, s=shrink: run(make, key, shrink=s)))(keys)
        for shrink in (False, True)
    }
    with_it, without = (
        np.asarray(free_energy(found[s][0])[:, -20:].mean(1)) for s in (True, False)
    )
    assert with_it.mean() < 0.8 * without.mean()
    assert_mean((with_it < without).astype(float), 1, bias=0.15)
    # Updates, gradients and shares belong together.
    _, updates, info = found[True]
    share = np.clip(info.signal, 0, 1)
    expected = -BETA * TAU * share[..., None] * info.gradient
    np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-6)
    assert share[:, 0].mean() > share[:, -20:].mean() + 0.2


def test_of_heat():
    x = jnp.ones(DIMENSION)
    sampler = lejax.score_function(60)

    @jax.jit
    def gradients(x):
        found = []
        for shrink in (False, True):
            tx = lejax.heat(sampler, TAU, key=jax.random.key(1), shrink=shrink)
            found.append(tx.update(None, tx.init(x), x, value_fn=bowl))
        return found

    (plain, state), (shrunk, _) = gradients(x)
    assert 0 < state.info.signal < 0.9
    np.testing.assert_allclose(shrunk, plain * state.info.signal, rtol=1e-5)


def test_noise_that_is_not_known_changes_nothing():
    """Of one unit; and of a sampler that never knows it, it is refused."""
    x = jnp.ones(DIMENSION)
    sampler = lejax.importance(2, reduction=False, credit=False)

    @jax.jit
    def gradients(x):
        found = []
        for shrink in (False, True):
            tx = lejax.local_entropy(sampler, TAU, key=jax.random.key(1), shrink=shrink)
            found.append(tx.update(None, tx.init(x), x, value_fn=bowl)[0])
        return found

    found = gradients(x)
    np.testing.assert_array_equal(*found)
    assert np.any(found[0] != 0)
    for make, sampler in (
        (lejax.local_entropy, lejax.sgld(5, 0.01)),
        (lejax.local_entropy, lejax.importance_by_example(20)),
        (lejax.heat, lejax.robbins_monro(3, 4, 0.5)),
    ):
        with pytest.raises(ValueError, match=f"shrink=True needs .* {sampler.name};"):
            make(sampler, TAU, key=jax.random.key(0), shrink=True)
