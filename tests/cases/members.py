"""Samplers over the members of an axis, and the losses that they share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import lejax

SAMPLERS = {
    "importance": lambda **axis: lejax.importance(17, chunk_size=4, **axis),
    "pairs": lambda **axis: lejax.importance(16, chunk_size=4, **axis),
    "centred": lambda **axis: lejax.importance(
        17, antithetic=False, credit=True, **axis
    ),
    "no credit": lambda **axis: lejax.importance(17, credit=False, **axis),
    "heat, no credit": lambda **axis: lejax.score_function(7, credit=False, **axis),
    "few samples": lambda **axis: lejax.importance(3, **axis),
    "plain": lambda **axis: lejax.importance(7, antithetic=False, **axis),
    "signs": lambda **axis: lejax.importance(24, signs_per_draw=3, **axis),
    "adapted": lambda **axis: lejax.importance(17, beta_share=0.5, **axis),
    "pathwise": lambda **axis: lejax.pathwise(7, **axis),
    "score_function": lambda **axis: lejax.score_function(7, **axis),
    "robbins_monro": lambda **axis: lejax.robbins_monro(3, 7, 0.3, **axis),
    "chains": lambda **axis: lejax.sgld(6, 0.05, num_chains=4, warm_start=True, **axis),
    "three chains": lambda **axis: lejax.sgld(
        6, 0.05, num_chains=3, warm_start=True, **axis
    ),
    "one chain": lambda **axis: lejax.sgld(6, 0.05, warm_start=True, **axis),
}


X = jnp.linspace(-1.0, 1.0, 5)


def f(x):
    """A loss that fails at some of the draws."""
    value = jnp.sum(jnp.sin(3 * x) + x**2)
    return jnp.where(x[0] < -1.5, jnp.nan, value)


def without_noise(tree):
    """Infos without what depends on the layout: test_noise.py has it by replicates.

    And without k̂, which magnifies the rounding of nearly equal weights.
    """
    noise = dict.fromkeys(
        ("squared_error", "signal", "signal_standard_error", "pareto_k")
    )
    return jax.tree.map(
        lambda x: x._replace(**noise) if is_info(x) else x, tree, is_leaf=is_info
    )


def is_info(x):
    return isinstance(x, lejax.Info)


def assert_same(found, expected):
    """To the rounding of sums in another order."""
    found, expected = without_noise(found), without_noise(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


RNG = np.random.default_rng(8)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


ROWS = normal(8, 40)
TOKENS = jnp.array([[3, 1], [0, 3], [7, 7], [2, 9], [3, 5], [11, 1], [90, 4], [6, 6]])
PARAMS = {
    "w": 0.1 * normal(40, 3),
    "table": normal(50, 3),
    "v": jnp.array([1.0, -2.0, 0.5]),
}


BATCH = (ROWS, TOKENS)


def network(params, batch):
    """Both kinds of reduction: a kernel seen by rows, a table read by some."""
    rows, tokens = batch
    hidden = rows @ params["w"] + params["table"].at[tokens].get(mode="clip").sum(1)
    return jnp.mean((jnp.tanh(hidden) @ params["v"]) ** 2)
