"""Networks and losses for credit by example, and the check that its mean is zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lejax._spaces.control_variate import add_control_variate, sums_by_leaf, zero_sums
from lejax._spaces.reduced import reduced_space
from lejax._tracing.partial_eval import trace_leaf_uses
from lejax._tracing.per_example import read_per_example


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def dense(params, x):
    """Two layers with biases, of 3 inputs, 4 hidden units and 2 outputs."""
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return hidden @ params["v"] + params["c"]


PARAMS = {
    "b": normal(0, 4) / 2,
    "c": normal(1, 2) / 2,
    "v": normal(2, 4, 2),
    "w": normal(3, 3, 4),
}
ROWS = normal(4, 5, 3)
LABELS = jnp.array([0, 1, 1, 0, 1])
# Smooth, skewed, with kinks, and with steps.
LOSSES = {
    "cross-entropy": lambda y: optax.losses.softmax_cross_entropy_with_integer_labels(
        y, LABELS[: len(y)]
    ),
    "square": lambda y: jnp.square(y - 1).sum(-1),
    "skewed": lambda y: jnp.exp(y[:, 0]) + jnp.abs(y[:, 1]),
    "errors": lambda y: (y.argmax(-1) != LABELS[: len(y)]).astype(jnp.float32),
}


def network(name):
    return lambda params, x: jnp.mean(LOSSES[name](dense(params, x)))


def reasons(value_fn, params, batch):
    program, found = trace_leaf_uses(value_fn, params, batch, inner_batches=False)
    return read_per_example(program, len(found)).reasons


def mean_of_control_variates(
    value_fn, params, batch, tau, blocks=1000, draws=500, reduction=False
):
    """ΣC of blocks of antithetic pairs, (blocks, numbers), each of leaf after leaf."""
    space = reduced_space(
        value_fn, params, batch, False, reduction=reduction, credit=True
    )
    signs = jnp.array([1.0, -1.0])

    def block(key):
        noise = jax.vmap(lambda key: space.noise(key, 1))(jax.random.split(key, draws))
        moves = jax.tree.map(lambda leaf: leaf * jnp.sqrt(jnp.float32(tau)), noise)
        examine = space.control_variate.examine
        seen = [
            jax.vmap(jax.vmap(lambda u, s=s: examine(u, sign=s)[1]))(moves)
            for s in (1.0, -1.0)
        ]
        seen = jax.tree.map(lambda *both: jnp.stack(both), *seen)
        valid = jnp.ones((draws, 1), bool)
        sums = add_control_variate(
            space.control_variate,
            zero_sums(space.control_variate, common=True),
            moves,
            signs,
            valid,
            seen,
        )
        parts = sums_by_leaf(space.control_variate, sums)
        return jnp.concatenate([part.ravel() for part in parts if part is not None])

    keys = jax.random.split(jax.random.key(5), blocks)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(block, keys))(keys), np.float64)


def assert_zero(sums):
    z = sums.mean(0) / (sums.std(0, ddof=1) / np.sqrt(len(sums)))
    assert np.abs(z).max() < 4.5, z
    # Together: each z² is 1 on average, and has the variance 2; they are correlated.
    assert np.square(z).mean() < 1 + 5 * np.sqrt(2 / len(z)), z


def of(forward):
    return lambda params, x: jnp.mean(forward(params, x) ** 2)


def batch_norm(params, x):
    y = x @ params["w"]
    y = (y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-5)
    return jnp.tanh(y) @ params["v"]


def attention(params, x):
    y = x @ params["w"]
    return jax.nn.softmax(y @ y.T) @ y @ params["v"]


def tied(params, x):
    return jnp.tanh(x @ params["w"] @ params["w"].T) @ params["w"] @ params["v"]


def positions(params, x):
    """As many of them as a row has numbers."""
    return jnp.tanh((x[:, None] * jnp.eye(3)) @ params["w"]).sum(1) @ params["v"]


def penalised(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"] + jnp.sum(params["v"] ** 2)


def shuffled(params, x):
    return jnp.roll(jnp.tanh(x @ params["w"]), 1, 0) @ params["v"]


def linear(params, x):
    return x @ params["w"] @ params["v"]
