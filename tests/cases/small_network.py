"""A network of which two rows of a batch meet five inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

INPUTS, HIDDEN, TAU = 5, 2, 0.4


PARAMS = {
    "b": jnp.array([0.2, -0.4]),
    "v": jnp.array([1.0, -1.5]),
    "w": 0.5 * jax.random.normal(jax.random.key(0), (INPUTS, HIDDEN)),
}


BATCH = jax.random.normal(jax.random.key(1), (2, INPUTS))


NEXT = jax.random.normal(jax.random.key(2), (2, INPUTS))


def network(params, x):
    """Skewed and with several wells in the weights: 2 rows meet 5 inputs."""
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.sum(jnp.exp(jnp.sin(hidden @ params["v"])) + jnp.cos(2 * hidden[:, 0]))
