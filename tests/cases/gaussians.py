"""Gaussians that are learnt, for their tests."""

from __future__ import annotations

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.problems import bimodal, quadrature, replicate, skewed

import lejax

STRUCTURES = ("scale", "diagonal", "full")
every_structure = pytest.mark.parametrize("covariance", STRUCTURES)
NUMBERS = {"beta", "temperature", "covariance_rate", "max_change"}
SAMPLERS = {"importance": lejax.importance(2000), "pathwise": lejax.pathwise(200)}
# Where a loss is looked at.
PLACES = {skewed: 0.5, bimodal: 0.2}
TARGETS = pytest.mark.parametrize(("loss", "x"), PLACES.items())
both = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def crossed(*by_default, **factors):
    """A parametrisation over all combinations; what is not said here is slow.

    Of each factor a mapping from names to values; `by_default` are tuples of names.
    """
    cases = [
        pytest.param(
            *(
                factor[name]
                for factor, name in zip(factors.values(), names, strict=True)
            ),
            id="-".join(names),
            marks=() if names in by_default else pytest.mark.slow,
        )
        for names in itertools.product(*factors.values())
    ]
    assert set(by_default) <= set(itertools.product(*factors.values()))
    return pytest.mark.parametrize(tuple(factors), cases)


def updated(loss, x, sampler, tau, key, number=1, batch=None, **options):
    """Parameters and state after so many updates of a chain of it and a whole step.

    One program for all x, τ, keys, batches and numbers among the options.
    """
    options = {"covariance_rate": 1.0, **options}
    numbers = {k: options.pop(k) for k in NUMBERS & set(options)}
    for schedule in [k for k, value in numbers.items() if callable(value)]:
        options[schedule] = numbers.pop(schedule)

    @jax.jit
    def run(x, tau, key, batch, numbers):
        head = lejax.gaussian(sampler, tau, key=key, **numbers, **options)
        tx = optax.chain(head, optax.sgd(1.0))

        def update(carry, _):
            x, state = carry
            updates, state = tx.update(None, state, x, value_fn=loss, batch=batch)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(update, (x, tx.init(x)), length=number)[0]

    x, state = run(x, tau, key, batch, numbers)
    return x, state[0]


def of_line(loss, sampler, **options):
    """Mean and variance after an update on the line, of a key, τ and x."""

    def found(key, tau, x):
        mean, state = updated(loss, x, sampler, tau, key, **options)
        return jnp.stack([mean, state.covariance.variances(mean)])

    return found


def at_each(taus, found, replicates, *given):
    """Replicates of `found(key, tau, *given)` at each τ, by one program."""
    over_taus = jax.vmap(found, (None, 0, *(None,) * len(given)))
    samples = replicate(over_taus, replicates, given=(jnp.asarray(taus), *given))
    return [
        jax.tree.map(lambda leaf, i=i: leaf[:, i], samples) for i in range(len(taus))
    ]


def dense(covariance, like):
    """Σ as a matrix."""
    flat, unravel = jax.flatten_util.ravel_pytree(like)

    def column(covariance, unit):
        return jax.flatten_util.ravel_pytree(covariance.times(unravel(unit)))[0]

    columns = jax.jit(jax.vmap(column, (None, 0)))(covariance, jnp.eye(flat.size))
    root = np.asarray(columns).T
    return root.astype(np.float64) @ root.T


def slope_and_bend(loss, x, tau):
    """E_φ f' and E_φ f''."""
    losses = loss, jax.grad(loss)
    return [quadrature(each, x, tau).heat_gradient for each in losses]
