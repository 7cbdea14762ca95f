"""Losses that the reduction must find, and the check that it changes nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases.spaces import reduced
from flax import nnx

ROWS, INPUTS, HIDDEN = 3, 7, 4


class Case(NamedTuple):
    """A loss, and what is drawn of every leaf (in the order of the leaves)."""

    value_fn: Any
    params: Any
    batch: Any
    drawn: list[tuple[int, ...]]


def normal(seed, *shape):
    """In the precision that is the default where it is called."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def plain(first, *, kernel=(INPUTS, HIDDEN), batch=(ROWS, INPUTS), rows=(ROWS, HIDDEN)):
    """A network of a first layer, `first(x, w)`, and a second."""
    params = {"v": normal(1, HIDDEN), "w": normal(2, *kernel)}

    def value_fn(params, x):
        return jnp.mean(jnp.tanh(first(x, params["w"])) @ params["v"])

    return Case(value_fn, params, normal(3, *batch), [(HIDDEN,), rows])


def linen_network():
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2)(linen.relu(linen.Dense(HIDDEN)(x)))

    network, x = Network(), normal(0, ROWS, INPUTS)
    params = network.init(jax.random.key(1), x)
    drawn = [(2,), (HIDDEN, 2), (HIDDEN,), (ROWS, HIDDEN)]
    return Case(lambda p, x: jnp.mean(network.apply(p, x) ** 2), params, x, drawn)


def nnx_network():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(INPUTS, HIDDEN, rngs=rngs)
            self.last = nnx.Linear(HIDDEN, 2, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.gelu(self.first(x)))

    graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    drawn = [(HIDDEN,), (ROWS, HIDDEN), (2,), (HIDDEN, 2)]

    def value_fn(params, x):
        return jnp.mean(nnx.merge(graph, params)(x) ** 2)

    return Case(value_fn, params, normal(0, ROWS, INPUTS), drawn)


def equinox_network():
    network = eqx.nn.MLP(INPUTS, "scalar", HIDDEN, 1, key=jax.random.key(0))
    params, static = eqx.partition(network, eqx.is_inexact_array)

    def value_fn(params, x):
        return jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2)

    drawn = [(ROWS, HIDDEN), (HIDDEN,), (1, HIDDEN), (1,)]
    return Case(value_fn, params, normal(1, ROWS, INPUTS), drawn)


def embedding(embed, *, tokens=((2, 5, 2), (0, 5, 9))):
    """A table of 11 rows, of which a batch of 6 tokens reads 4."""
    params = {"table": normal(0, 11, HIDDEN), "v": normal(1, HIDDEN)}

    def value_fn(params, tokens):
        return jnp.mean(jnp.tanh(embed(params["table"], tokens)) @ params["v"])

    return Case(value_fn, params, jnp.array(tokens), [(6, HIDDEN), (HIDDEN,)])


def linen_embedding():
    class Network(linen.Module):
        @linen.compact
        def __call__(self, tokens):
            return linen.Dense(1)(jnp.tanh(linen.Embed(11, HIDDEN)(tokens)))

    network, tokens = Network(), jnp.array([[2, 5, 2], [0, 5, 9]])
    params = network.init(jax.random.key(1), tokens)
    drawn = [(1,), (HIDDEN, 1), (6, HIDDEN)]
    return Case(lambda p, t: jnp.mean(network.apply(p, t) ** 2), params, tokens, drawn)


def equinox_embedding():
    params, static = eqx.partition(
        eqx.nn.Embedding(11, HIDDEN, key=jax.random.key(0)), eqx.is_inexact_array
    )

    def value_fn(params, tokens):
        return jnp.mean(jnp.sin(jax.vmap(eqx.combine(params, static))(tokens)))

    return Case(value_fn, params, jnp.array([2, 5, 2]), [(3, HIDDEN)])


def two_uses(second):
    """One kernel, on the batch and on `second` of it."""
    params = {"v": normal(1, HIDDEN), "w": normal(2, INPUTS, HIDDEN)}

    def value_fn(params, x):
        hidden = jnp.tanh(x @ params["w"]) + jnp.cos(second(x) @ params["w"])
        return jnp.mean(hidden @ params["v"])

    return value_fn, params, normal(3, ROWS, INPUTS)


def shared_rows():
    """Two kernels that meet the same rows, as the gates of a cell do."""
    params = {"a": normal(1, INPUTS, HIDDEN), "b": normal(2, INPUTS, HIDDEN)}

    def value_fn(params, x):
        return jnp.mean(jax.nn.sigmoid(x @ params["a"]) * (x @ params["b"]))

    return Case(value_fn, params, normal(3, ROWS, INPUTS), [(ROWS, HIDDEN)] * 2)


def half_kernel():
    """A kernel of half precision, cast to that of the batch: nothing is lost."""
    case = plain(lambda x, w: x @ w.astype(jnp.float32))
    w = case.params["w"].astype(jnp.bfloat16)
    return case._replace(params={**case.params, "w": w})


CASES = {
    "x @ w": lambda: plain(lambda x, w: x @ w),
    "under jit": lambda: plain(jax.jit(lambda x, w: x @ w)),
    "transposed": lambda: plain(
        lambda x, w: x @ w.T, kernel=(HIDDEN, INPUTS), rows=(ROWS, HIDDEN)
    ),
    "on the left": lambda: plain(
        lambda x, w: (w @ x.T).T, kernel=(HIDDEN, INPUTS), rows=(ROWS, HIDDEN)
    ),
    "vmapped": lambda: plain(jax.vmap(lambda x, w: x @ w, in_axes=(0, None))),
    "leading axes": lambda: plain(
        lambda x, w: x @ w, batch=(2, 2, INPUTS), rows=(4, HIDDEN)
    ),
    "einsum": lambda: plain(
        lambda x, w: jnp.einsum("bti,hi->bth", x, w),
        kernel=(HIDDEN, INPUTS),
        batch=(2, 1, INPUTS),
        rows=(2, HIDDEN),
    ),
    "three axes, the middle one": lambda: plain(
        lambda x, w: jnp.einsum("bi,gih->bgh", x, w),
        kernel=(2, INPUTS, HIDDEN),
        rows=(ROWS, 2, HIDDEN),
    ),
    "two axes at once": lambda: plain(
        lambda x, w: jnp.einsum("bij,hji->bh", x, w),
        kernel=(HIDDEN, 2, 3),
        batch=(ROWS, 3, 2),
        rows=(ROWS, HIDDEN),
    ),
    "a vector": lambda: Case(
        lambda w, x: jnp.mean(jnp.exp(x @ w)),
        normal(0, INPUTS),
        normal(1, ROWS, INPUTS),
        [(ROWS,)],
    ),
    "one row": lambda: plain(lambda x, w: x @ w, batch=(1, INPUTS), rows=(1, HIDDEN)),
    "one row less than inputs": lambda: plain(
        lambda x, w: x @ w, batch=(INPUTS - 1, INPUTS), rows=(INPUTS - 1, HIDDEN)
    ),
    "as many rows as inputs": lambda: plain(
        lambda x, w: x @ w, batch=(INPUTS, INPUTS), rows=(INPUTS, HIDDEN)
    ),
    "more rows than inputs": lambda: plain(
        lambda x, w: x @ w, batch=(2 * INPUTS, INPUTS), rows=(INPUTS, HIDDEN)
    ),
    "a half-precision kernel": half_kernel,
    "used twice on the same": lambda: Case(
        *two_uses(lambda x: x), [(HIDDEN,), (ROWS, HIDDEN)]
    ),
    "used twice on other rows": lambda: Case(
        *two_uses(lambda x: jnp.sin(x)), [(HIDDEN,), (2 * ROWS, HIDDEN)]
    ),
    "two kernels on the same rows": shared_rows,
    "linen": linen_network,
    "nnx": nnx_network,
    "equinox": equinox_network,
    "table[i]": lambda: embedding(lambda table, tokens: table[tokens]),
    "take": lambda: embedding(lambda table, tokens: jnp.take(table, tokens, axis=0)),
    "take from the end": lambda: embedding(
        lambda table, tokens: jnp.take(table, -1 - tokens, axis=0)
    ),
    "take, clipped": lambda: embedding(
        lambda table, tokens: jnp.take(table, 3 * tokens - 5, axis=0, mode="clip")
    ),
    "take, filled": lambda: embedding(
        lambda table, tokens: jnp.take(
            table, 3 * tokens, axis=0, mode="fill", fill_value=0.7
        )
    ),
    "take of columns": lambda: embedding(
        lambda table, tokens: jnp.moveaxis(jnp.take(table.T, tokens, axis=1), 0, -1)
    ),
    "short integers": lambda: embedding(
        lambda table, tokens: table[tokens.astype(jnp.uint8)]
    ),
    "a column of a table of one": lambda: Case(
        lambda t, i: jnp.sum(t[i, 0] ** 2),
        normal(0, 11, 1),
        jnp.array([1, 2, 1]),
        [(3, 1)],
    ),
    "rows of integers": lambda: plain(lambda x, w: (x > 0).astype(int) @ w),
    "no rows": lambda: plain(
        lambda x, w: x @ w + 1, batch=(0, INPUTS), rows=(0, HIDDEN)
    )._replace(value_fn=lambda p, x: jnp.sum(jnp.tanh(x @ p["w"])) + p["v"].sum()),
    "embedding, linen": linen_embedding,
    "embedding, equinox": equinox_embedding,
}


def check(value_fn, params, batch, *, rtol=2e-5):
    """Values and gradients at x and x ± u; and that the coordinates are isometric.

    Returns the displacement 0.
    """

    @jax.jit
    def evaluate(params, batch, length, sign):
        space = reduced(value_fn, params, batch, inner_batches=False)
        noise = space.noise(jax.random.key(9), 1)
        u = jax.tree.map(lambda leaf: length * leaf[0], noise)
        lifted = space.lift(u)
        moved = jax.tree.map(
            lambda x, d: (x + sign * d).astype(x.dtype), params, lifted
        )
        value, slope = jax.value_and_grad(space.value_fn)(u, sign=sign)
        truth, true_slope = jax.value_and_grad(value_fn)(moved, batch)
        slope = jax.tree.map(lambda leaf: sign * leaf, space.lift(slope))
        lost = jax.tree.map(jnp.subtract, u, space.lower(lifted))
        squares = (
            optax.tree.norm(u, squared=True),
            optax.tree.norm(lifted, squared=True),
        )
        return space.zeros, value, truth, slope, true_slope, lifted, lost, squares

    for length, sign in ((0.0, 1.0), (0.3, 1.0), (0.3, -1.0)):
        zeros, *found, lifted, lost, squares = jax.device_get(
            evaluate(params, batch, length, sign)
        )
        value, truth, slope, true_slope = found
        np.testing.assert_allclose(value, truth, rtol=10 * rtol, atol=rtol)
        slope, true_slope = map(jax.tree.leaves, (slope, true_slope))
        scale = max(float(np.abs(leaf).max(initial=0)) for leaf in true_slope)
        for leaf, truth in zip(slope, true_slope, strict=True):
            np.testing.assert_allclose(
                leaf, truth.astype(leaf.dtype), rtol=100 * rtol, atol=10 * rtol * scale
            )
        shapes = [[leaf.shape for leaf in jax.tree.leaves(t)] for t in (lifted, params)]
        assert shapes[0] == shapes[1]
        assert all(np.abs(leaf).max(initial=0) < 1e-5 for leaf in jax.tree.leaves(lost))
        np.testing.assert_allclose(*squares, rtol=1e-4)
    return zeros


def kernel_and(value):
    """A first layer, and what else the loss does with its kernel."""
    params = {"v": normal(1, HIDDEN), "w": normal(2, INPUTS, HIDDEN)}

    def value_fn(params, x):
        hidden = jnp.tanh(x @ params["w"])
        return jnp.mean(hidden @ params["v"]) + value(params["w"], x, hidden)

    return value_fn, params, normal(3, ROWS, INPUTS)
