"""Networks and losses for credit by example, and the check that its mean is zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases.spaces import reading, reduced

from lejax._spaces.control_variate import add_control_variate


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
    return reading(value_fn, params, batch)[1].reasons


def mean_of_control_variates(
    value_fn, params, batch, tau, blocks=1000, draws=500, reduction=False
):
    """ΣC of blocks of antithetic pairs, (blocks, numbers), each of leaf after leaf."""
    space = reduced(value_fn, params, batch, False, reduction=reduction, credit=True)
    signs = jnp.array([1.0, -1.0])
    inner, control = space.inner, space.control_variate

    def block(key):
        keys = jax.random.split(key, draws)
        noise = jax.vmap(lambda key: inner.noise(key, 1).copies(1))(keys)
        u = jax.tree.map(lambda leaf: leaf * jnp.sqrt(jnp.float32(tau)), noise)
        examine = jax.vmap(jax.vmap(control.examine, (0, None)), (0, None))
        seen = jax.vmap(examine, (None, 0))(u, signs)[1]
        leaves = jax.vmap(jax.vmap(inner.tree))(u)
        sums = add_control_variate(
            control, control.no_sums(), u, leaves, signs[:, None], None, seen
        )
        leaves = jax.tree.leaves(inner.tree(control.as_blocks(sums)))
        inside = {leaf for layer in control.layers for leaf in layer.leaves}
        return jnp.concatenate([leaves[place].ravel() for place in sorted(inside)])

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
