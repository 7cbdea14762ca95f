"""Losses and loops for tests of black-box searches."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sphere(x):
    return jnp.square(x).sum()


def ellipsoid(x):
    """Of condition number 10⁶."""
    powers = jnp.arange(x.size, dtype=x.dtype) * (6 / (x.size - 1))
    return (10**powers * jnp.square(x)).sum()


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def search(rule, loss, state, updates):
    """The last state, and every one on the way, of a compiled loop."""

    def update(state, _):
        state = rule.tell(state, jax.vmap(loss)(rule.ask(state)))
        return state, state

    return jax.jit(lambda state: jax.lax.scan(update, state, length=updates))(state)
