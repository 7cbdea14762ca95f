"""A chain that climbs, or discards its first parts, is warned of, also when traced."""

from __future__ import annotations

import re
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

import lejax

X, KEY = jnp.ones(3), jax.random.key(0)
HEAT = lejax.heat(lejax.pathwise(2), 0.1, key=KEY)
MASKED = lejax.heat(lejax.pathwise(2), 0.1, key=KEY, mask=True)
GAUSSIAN = lejax.gaussian(lejax.importance(50), 0.1, key=KEY)
SGD = optax.sgd(0.1)
CLIMBS = r"nothing follows local_entropy, heat or gaussian.*optax\.chain\(smooth, opta"
DISCARDS = r"the transformations before it in the chain have no effect; put it first"


def said(tx, updates=None, jit=False):
    """What an update warns of."""
    state = tx.init(X)

    def update(state):
        return tx.update(updates, state, X, value_fn=lambda x: x @ x)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (jax.jit(update) if jit else update)(state)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (optax.chain(HEAT), CLIMBS),
        (optax.chain(GAUSSIAN), CLIMBS),
        (optax.named_chain(("smooth", HEAT)), CLIMBS),
        (optax.chain(optax.chain(HEAT)), CLIMBS),
        (optax.chain(optax.clip(1.0), HEAT, SGD), DISCARDS),
        (
            optax.named_chain(("clip", optax.clip(1.0)), ("s", HEAT), ("o", SGD)),
            DISCARDS,
        ),
        (optax.chain(optax.clip(1.0), optax.chain(HEAT, SGD)), DISCARDS),
    ],
)
def test_misplaced(tx, message, jit):
    (warning,) = said(tx, X * 0, jit)
    assert re.search(message, warning)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "tx",
    [
        HEAT,
        optax.chain(HEAT, SGD),
        optax.chain(optax.chain(HEAT), SGD),
        optax.named_chain(("smooth", HEAT), ("sgd", SGD)),
        optax.chain(optax.clip(1.0), MASKED, SGD),  # for the leaves left out
        lejax.entropy_sgd(0.1, 0.1, key=KEY, num_steps=2, inner_batches=False),
    ],
)
def test_in_place(tx, jit):
    assert said(tx, jit=jit) == []
