"""Gaussians that are learnt, for their tests."""

from __future__ import annotations

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import bimodal, quadrature, skewed

import lejax

STRUCTURES = ("scale", "diagonal", "full")
every_structure = pytest.mark.parametrize("covariance", STRUCTURES)
SAMPLERS = {"importance": lejax.importance(2000), "pathwise": lejax.pathwise(200)}
TARGETS = pytest.mark.parametrize(("loss", "x"), [(skewed, 0.5), (bimodal, 0.2)])
both = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


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


def of_line(loss, x, sampler, tau, **options):
    """Mean and variance after an update on the line, as a function of the key."""

    def found(key):
        mean, state = updated(loss, jnp.asarray(x), sampler, tau, key, **options)
        return jnp.stack([mean, state.covariance.variances(mean)])

    return found


def dense(covariance, like):
    """Σ as a matrix."""
    flat, unravel = jax.flatten_util.ravel_pytree(like)
    columns = [covariance.times(unravel(unit)) for unit in jnp.eye(flat.size)]
    root = np.stack([jax.flatten_util.ravel_pytree(c)[0] for c in columns], 1)
    return root.astype(np.float64) @ root.T


def slope_and_bend(loss, x, tau):
    """E_φ f' and E_φ f''."""
    losses = loss, jax.grad(loss)
    return [quadrature(each, x, tau).heat_gradient for each in losses]
