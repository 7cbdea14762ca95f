"""Short runs of `minimize`, for its tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lejax

KEY = jax.random.key(0)
X = {"w": jnp.array([[1.0, -1.0], [0.5, 2.0]]), "b": jnp.array([0.3, -0.2])}
BATCHES = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)
WHOLE = {"reduction": False, "credit": False}
FEW, MANY = lejax.importance(40, **WHOLE), lejax.importance(400, **WHOLE)
SCHEDULE = lejax.scoping(0.2, 0.1)
SLOW = optax.sgd(0.05, momentum=0.9)
QUICK, CHAIN = lejax.pathwise(20, reduction=False), lejax.sgld(4, 0.1)


def loss(params, batch):
    reading = batch @ params["w"] + params["b"]
    return jnp.mean(reading**2) + jnp.mean(jnp.cos(2 * reading))


def bowl(x):
    return jnp.sum(x**2) / 2


def minimize(value_fn=bowl, params=None, **options):
    """A short run on a bowl, where nothing else is said."""
    defaults = {"sampler": QUICK, "tau": 0.5, "key": KEY, "num_updates": 12}
    params = jnp.ones(2) if params is None else params
    return lejax.minimize(value_fn, params, **{**defaults, **options})


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), one, other)


def assert_same(one, other):
    """Parameters, history and state, bit for bit."""
    for result in (one, other):
        assert jax.tree.leaves(result.state)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(numbers(a), numbers(b)),
        (one.params, one.history, one.state),
        (other.params, other.history, other.state),
    )


def numbers(leaf):
    is_key = jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
