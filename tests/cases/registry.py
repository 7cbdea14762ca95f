"""Every public factory at work on one small problem, for what holds for all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lejax


class Entry(NamedTuple):
    """A transformation `make(tau, key=..., **options)`, and the factories it is of."""

    make: Callable[..., Any]
    uses: set[Callable[..., Any]]


def smoothing(regularization, sampler, *args, **options):
    make = functools.partial(regularization, sampler(*args, **options))
    return Entry(make, {regularization, sampler})


def of_all_devices(tau, **options):
    sampler = lejax.parallel(lejax.importance(20))
    return lejax.local_entropy(sampler, tau, **options)


def controlled(tau, **options):
    tau = tau if callable(tau) else lejax.target_share(0.2, tau)
    return lejax.local_entropy(lejax.importance(250), tau, **options)


def scoped(tau, **options):
    tau = tau if callable(tau) else lejax.scoping(tau, 0.1)
    return lejax.local_entropy(lejax.importance(20), tau, **options)


def entropy_sgd(tau, **options):
    options = {"num_steps": 4, "noise": 0.5, "inner_batches": False, **options}
    return lejax.entropy_sgd(0.5, tau, **options)


def gaussian(sampler, covariance, **options):
    options = {"covariance": covariance, **options}
    make = functools.partial(lejax.gaussian, sampler, **options)
    return Entry(make, {lejax.gaussian})


# Where `mask` and `beta` are arguments, and the state is a `SmoothingState`.
SMOOTHINGS = {
    "importance": smoothing(lejax.local_entropy, lejax.importance, 20),
    "importance, no credit": smoothing(
        lejax.local_entropy, lejax.importance, 20, credit=False
    ),
    "importance, centred": smoothing(
        lejax.local_entropy, lejax.importance, 20, antithetic=False, credit=True
    ),
    "importance, adapted": smoothing(
        lejax.local_entropy, lejax.importance, 20, beta_share=0.3
    ),
    "importance, ranks": smoothing(
        lejax.local_entropy, lejax.importance, 20, shaping="ranks"
    ),
    "sgld": smoothing(lejax.local_entropy, lejax.sgld, 5, 0.01),
    "sgld, warm": smoothing(lejax.local_entropy, lejax.sgld, 20, 0.1, warm_start=True),
    "sgld, averaged": smoothing(
        lejax.local_entropy, lejax.sgld, 5, 0.01, averaging=0.5
    ),
    "sgld, chains": smoothing(lejax.local_entropy, lejax.sgld, 5, 0.01, num_chains=2),
    "robbins_monro": smoothing(lejax.heat, lejax.robbins_monro, 3, 4, 0.5),
    "pathwise": smoothing(lejax.heat, lejax.pathwise, 4),
    "score_function": smoothing(lejax.heat, lejax.score_function, 20),
    "score_function, no credit": smoothing(
        lejax.heat, lejax.score_function, 20, credit=False
    ),
    "importance_by_example": smoothing(
        lejax.local_entropy, lejax.importance_by_example, 20
    ),
    "parallel": Entry(of_all_devices, {lejax.parallel}),
    "scoping": Entry(scoped, {lejax.scoping}),
    "target_share": Entry(controlled, {lejax.target_share}),
}
TRANSFORMATIONS = SMOOTHINGS | {
    "entropy_sgd": Entry(entropy_sgd, {lejax.entropy_sgd}),
    "gaussian, full": gaussian(lejax.importance(20), "full"),
    "gaussian, adapted": gaussian(lejax.importance(20, beta_share=0.5), "scale"),
    "gaussian, low rank": gaussian(lejax.importance(20), "low_rank", rank=2),
    "gaussian, pathwise": gaussian(lejax.pathwise(20), "diagonal"),
}
# Masks, aux, wrappers and state live in one place: by default these go through it.
BY_DEFAULT = {"importance", "sgld", "score_function", "gaussian, full"}


def _thinned(names):
    return pytest.mark.parametrize(
        "name",
        [
            name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow)
            for name in names
        ],
    )


every_smoothing = _thinned(SMOOTHINGS)
every_transformation = _thinned(TRANSFORMATIONS)


def transformation(name, tau=0.1, seed=7, **options):
    return TRANSFORMATIONS[name].make(tau, key=jax.random.key(seed), **options)


def params():
    return {
        "w": jnp.array([[1.0, -1.0], [0.5, 2.0]], jnp.float32),
        "b": jnp.array([0.1, -0.2], jnp.float32),
    }


def loss(params, batch):
    """Not a quadratic: antithetic pairs would be exact, whatever their draws."""
    reading = batch @ params["w"] + params["b"]
    return jnp.mean(reading**2) + jnp.mean(jnp.cos(2 * reading))


BATCH = jnp.array([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]])


def signature(tree):
    """Structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(leaf), leaf.dtype) for leaf in leaves]


GIVEN = {"value_fn": loss, "batch": BATCH}


def zeros():
    """What wrappers need that map over the incoming updates."""
    return jax.tree.map(jnp.zeros_like, params())


def assert_close(one, other, rtol=1e-4, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other
    )


def assert_differ(one, other):
    """By more than rounding."""
    assert not np.allclose(one, other, rtol=1e-3)


@functools.cache
def alone(name, updates=2):
    """The first updates of a transformation by itself, at the same parameters."""
    tx = transformation(name)
    step = jax.jit(lambda state: tx.update(zeros(), state, params(), **GIVEN))
    state, found = tx.init(params()), []
    for _ in range(updates):
        update, state = step(state)
        found.append(update)
    return found
