"""A bowl, and the first update of a transformation, for tests of what users write."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import lejax

KEY, X = jax.random.key(0), jnp.ones(3)
IMPORTANCE, PATHWISE = lejax.importance(100), lejax.pathwise(4)


def bowl(x):
    return jnp.sum(x**2)


def first(tx, value_fn=bowl, params=X, updates=None, **given):
    return tx.update(updates, tx.init(params), params, value_fn=value_fn, **given)


def smooth(sampler=IMPORTANCE, tau=0.1, **options):
    return lejax.local_entropy(sampler, tau, key=KEY, **options)
