"""The reduction: what it finds, and that it changes neither values nor gradients."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as linen
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies

import lejax
from lejax._reduction import reduced_space

# Flax and Equinox promote on their own.
pytestmark = pytest.mark.standard

ROWS, INPUTS, HIDDEN = 3, 7, 4


class Case(NamedTuple):
    """A loss, and what is drawn of every leaf (in the order of the leaves)."""

    value_fn: Any
    params: Any
    batch: Any
    drawn: list[tuple[int, ...]]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


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
    def evaluate(params, batch):
        space = reduced_space(value_fn, params, batch, inner_batches=False)
        noise = space.noise(jax.random.key(9), 1)
        u = jax.tree.map(lambda leaf: 0.3 * leaf[0], noise)
        lifted = space.lift(u)
        ours, theirs = [space.value_fn(space.zeros)], [value_fn(params, batch)]
        slopes = []
        for sign in (1.0, -1.0):
            moved = jax.tree.map(
                lambda x, d, s=sign: (x + s * d).astype(x.dtype), params, lifted
            )
            value, slope = jax.value_and_grad(space.value_fn)(u, sign=sign)
            truth, true_slope = jax.value_and_grad(value_fn)(moved, batch)
            ours.append(value)
            theirs.append(truth)
            slope = jax.tree.map(lambda leaf, s=sign: s * leaf, space.lift(slope))
            slopes.append((slope, true_slope))
        lost = jax.tree.map(jnp.subtract, u, space.lower(lifted))
        squares = (
            optax.tree.norm(u, squared=True),
            optax.tree.norm(lifted, squared=True),
        )
        return space.zeros, ours, theirs, slopes, lifted, lost, squares

    zeros, ours, theirs, slopes, lifted, lost, squares = evaluate(params, batch)
    np.testing.assert_allclose(ours, theirs, rtol=10 * rtol, atol=rtol)
    for slope, true_slope in slopes:
        scale = max(
            float(jnp.abs(leaf).max(initial=0)) for leaf in jax.tree.leaves(true_slope)
        )
        for leaf, truth in zip(*map(jax.tree.leaves, (slope, true_slope)), strict=True):
            np.testing.assert_allclose(
                leaf, truth.astype(leaf.dtype), rtol=100 * rtol, atol=10 * rtol * scale
            )
    shapes = [[leaf.shape for leaf in jax.tree.leaves(t)] for t in (lifted, params)]
    assert shapes[0] == shapes[1]
    assert all(
        jnp.abs(leaf).max() < 1e-5 for leaf in jax.tree.leaves(lost) if leaf.size
    )
    np.testing.assert_allclose(*squares, rtol=1e-4)
    return zeros


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_loss(name):
    case = CASES[name]()
    half = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(case.params))
    zeros = check(*case[:3], rtol=2e-3 if half else 2e-5)
    shapes = [leaf.shape for leaf in jax.tree.leaves(zeros)]
    assert shapes == case.drawn
    report = lejax.reduction_report(*case[:3])
    assert [leaf.reduced_shape for leaf in report.leaves] == case.drawn


def kernel_and(value):
    """A first layer, and what else the loss does with its kernel."""
    params = {"v": normal(1, HIDDEN), "w": normal(2, INPUTS, HIDDEN)}

    def value_fn(params, x):
        hidden = jnp.tanh(x @ params["w"])
        return jnp.mean(hidden @ params["v"]) + value(params["w"], x, hidden)

    return value_fn, params, normal(3, ROWS, INPUTS)


FALLBACKS = {
    "weight decay": (lambda w, x, h: 0.01 * jnp.sum(w**2), "used by"),
    "tied": (
        lambda w, x, h: jnp.mean((h @ w.T - x) ** 2),
        "its rows depend on parameters",
    ),
    "along its other axis": (
        lambda w, x, h: jnp.sum(jnp.tanh(w @ jnp.ones(HIDDEN))),
        "along different axes",
    ),
    "both indexed and multiplied": (
        lambda w, x, h: jnp.sum(jnp.tanh(w[jnp.array([0, 1])])),
        "both multiplied and indexed",
    ),
    "in scan": (
        lambda w, x, h: jnp.sum(
            jax.lax.scan(lambda c, row: (c + jnp.tanh(row @ w), None), h[0], x)[0]
        ),
        "used by scan",
    ),
    "in while": (
        lambda w, x, h: jnp.sum(
            jax.lax.fori_loop(0, 2, lambda i, c: c + jnp.tanh(x @ w), h)
        ),
        "used by",
    ),
    "in cond": (
        lambda w, x, h: jax.lax.cond(
            h[0, 0] > 0, lambda: jnp.sum(jnp.sin(x @ w)), lambda: 0.0
        ),
        "used by cond",
    ),
    "in checkpoint": (
        lambda w, x, h: jnp.sum(jax.checkpoint(lambda w: jnp.sin(x @ w))(w)),
        "used by",
    ),
    "in a custom rule": (
        lambda w, x, h: jnp.sum(_doubled_slope(x @ jax.nn.relu(w))),
        "used by custom_jvp_call",
    ),
    "batched product": (
        lambda w, x, h: jnp.sum(
            jnp.sin(jnp.einsum("ih,kih->ki", w, jnp.ones((2, INPUTS, HIDDEN))))
        ),
        "used by dot_general with batch dimensions",
    ),
    "stopped": (lambda w, x, h: jnp.sum(x @ jax.lax.stop_gradient(w)), "used by"),
    "narrowed": (
        lambda w, x, h: jnp.sum(x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(
            jnp.float32
        ),
        "used by convert_element_type",
    ),
    "rows that depend on parameters": (
        lambda w, x, h: jnp.sum(
            jnp.tanh(
                jnp.where(jax.random.bernoulli(_key_of(h), 0.5, x.shape), x, 0) @ w
            )
        ),
        "its rows depend on parameters",
    ),
    "complex rows": (
        lambda w, x, h: jnp.sum(jnp.sin(jnp.abs((x + 1j * x[::-1]) @ w))),
        "its rows are complex",
    ),
    "rounded to integers": (
        lambda w, x, h: (
            jax.lax.dot_general(
                x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
            )
            .sum()
            .astype(jnp.float32)
        ),
        "its product is rounded to integers",
    ),
    "sliced": (lambda w, x, h: jnp.sum(jnp.sin(x[:, :3] @ w[:3])), "used by"),
}


def _key_of(hidden):
    """A dropout key that is fresh for every sample."""
    return jax.random.key(jax.lax.bitcast_convert_type(hidden[0, 0], jnp.uint32))


@jax.custom_jvp
def _doubled_slope(x):
    return x**2


@_doubled_slope.defjvp
def _doubled_slope_rule(primals, tangents):
    (x,), (t,) = primals, tangents
    return x**2, 4 * x * t


@pytest.mark.parametrize("name", FALLBACKS)
def test_any_other_use_leaves_the_leaf_whole(name):
    value, reason = FALLBACKS[name]
    value_fn, params, batch = kernel_and(value)
    leaf = lejax.reduction_report(value_fn, params, batch).leaves[1]
    assert leaf.reduced_shape == leaf.shape
    assert reason in leaf.reason
    zeros = check(value_fn, params, batch)
    assert zeros["w"].shape == (INPUTS, HIDDEN)


def test_side_effects_leave_everything_whole():
    def value_fn(w, x):
        jax.debug.callback(lambda v: None, jnp.sum(w))
        return jnp.mean(x @ w)

    (leaf,) = lejax.reduction_report(
        value_fn, normal(0, INPUTS), normal(1, ROWS, INPUTS)
    ).leaves
    assert leaf.reduced_shape == (INPUTS,)
    assert leaf.reason.startswith("the loss cannot be run in parts: ")


@pytest.mark.parametrize(
    "exchange",
    [
        lambda loss: jax.lax.pmean(loss, "data"),
        lambda loss: jax.lax.ppermute(loss, "data", [(0, 1), (1, 0)]),
        lambda loss: jax.jit(lambda x: jax.lax.all_gather(x, "data").sum())(loss),
    ],
    ids=["pmean", "ppermute", "all_gather"],
)
def test_members_that_exchange_their_losses_draw_in_full_space(exchange):
    """Every member has other rows; their common draw must be of the kernel itself."""

    def member(x):
        def value_fn(w, x):
            return exchange(jnp.mean(jnp.tanh(x @ w)))

        space = reduced_space(value_fn, normal(0, INPUTS), x, inner_batches=False)
        assert space.zeros.shape == (INPUTS,)
        return x

    jax.vmap(member, axis_name="data")(normal(1, 2, ROWS, INPUTS))


def test_a_convolution_stays_whole():
    def value_fn(kernel, x):
        return jnp.mean(jnp.tanh(jax.lax.conv(x, kernel, (1, 1), "SAME")))

    kernel, x = normal(0, 4, 2, 3, 3), normal(1, 1, 2, 5, 5)
    zeros = check(value_fn, kernel, x)
    assert zeros.shape == kernel.shape


def test_a_leaf_without_use_is_not_drawn():
    value_fn, params, batch = kernel_and(lambda w, x, h: 0.0)
    params = {**params, "unused": normal(5, 3, 2), "empty": jnp.zeros((0, 4))}
    zeros = check(value_fn, params, batch)
    assert zeros["unused"].shape == (0,)
    assert zeros["empty"].shape == (0, 4)
    space = reduced_space(value_fn, params, batch, inner_batches=False)
    np.testing.assert_array_equal(space.outside(params)["unused"], params["unused"])


def test_a_constant_loss_draws_nothing():
    for sampler in (lejax.importance(10), lejax.sgld(5, 0.1), lejax.pathwise(4)):
        step = lejax.step_fn(lambda w, x: jnp.sum(x), sampler, tau=0.3)
        moved = step(normal(0, 3), jax.random.key(0), jnp.ones(2))
        np.testing.assert_array_equal(moved, normal(0, 3))


@pytest.mark.parametrize(
    "batch", ["repeated rows", "zero rows", "zero columns", "zero"]
)
def test_rank_deficient_batches(batch):
    value_fn, params, x = kernel_and(lambda w, x, h: 0.0)
    x = {
        "repeated rows": x.at[1].set(x[0]),
        "zero rows": x.at[1].set(0),
        "zero columns": x.at[:, :5].set(0),
        "zero": 0 * x,
    }[batch]
    zeros = check(value_fn, params, x)
    assert zeros["w"].shape == (ROWS, HIDDEN)


def test_a_row_of_a_table_is_drawn_once():
    """The tokens read 4 rows: as many draws, and no noise in the others."""
    case = CASES["table[i]"]()
    space = reduced_space(*case[:3], inner_batches=False)
    noise = jax.tree.map(lambda leaf: leaf[0], space.noise(jax.random.key(0), 1))
    assert np.count_nonzero(np.abs(noise["table"]).max(1)) == 4
    lifted = np.abs(space.lift(noise)["table"]).max(1)
    np.testing.assert_array_equal(np.flatnonzero(lifted), [0, 2, 5, 9])


def test_rows_of_very_different_size_all_count():
    """A small row beside a large one must not be taken for rounding."""
    value_fn, params, x = kernel_and(lambda w, x, h: 0.0)
    check(value_fn, params, x.at[0].multiply(1e-6).at[1].multiply(1e6))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_row_that_is_not_finite_fails_loudly_and_alone(bad):
    """A mask in the loss may leave it out; the other rows keep their directions."""

    def value_fn(w, batch):
        x, mask = batch
        return jnp.sum(jnp.where(mask, jnp.tanh(x @ w), 0))

    x, w = normal(0, ROWS, INPUTS).at[1, 2].set(bad), normal(1, INPUTS)
    mask = jnp.array([True, False, True])
    space = reduced_space(value_fn, w, (x, mask), inner_batches=False)
    u = 0.3 * space.noise(jax.random.key(0), 1)[0]
    np.testing.assert_allclose(
        space.value_fn(u), value_fn(w + space.lift(u), (x, mask)), rtol=1e-5
    )
    seen = reduced_space(value_fn, w, (x, ~mask), inner_batches=False)
    assert np.isnan(seen.value_fn(u))
    step = lejax.step_fn(value_fn, lejax.importance(50), tau=0.1)
    moved = step(w, jax.random.key(0), (x, ~mask))
    np.testing.assert_array_equal(moved, w)
    assert (step(w, jax.random.key(0), (x, mask)) != w).all()


@pytest.mark.parametrize("rows", [INPUTS, INPUTS + 1])
def test_as_many_rows_as_inputs_gain_nothing(rows):
    case = plain(lambda x, w: x @ w, batch=(rows, INPUTS), rows=(INPUTS, HIDDEN))
    leaf = lejax.reduction_report(*case[:3]).leaves[1]
    assert leaf.reason == f"{rows} rows meet {INPUTS} inputs"
    space = reduced_space(*case[:3], inner_batches=False)
    assert space.outside is None


def test_what_is_out_of_range_reads_no_row():
    """It is the fill, wherever a chain has drifted."""
    case = CASES["take, filled"]()
    space = reduced_space(*case[:3], inner_batches=False)
    drift = jax.tree.map(jnp.ones_like, space.zeros)
    moved = jax.tree.map(jnp.add, case.params, space.lift(drift))
    np.testing.assert_allclose(
        space.value_fn(drift), case.value_fn(moved, case.batch), rtol=1e-5
    )


@jax.custom_jvp
def spike(x):
    """A step with the slope of a fast sigmoid, as spiking networks are trained."""
    return (x > 0).astype(x.dtype)


@spike.defjvp
def _spike_rule(primals, tangents):
    (x,), (t,) = primals, tangents
    return spike(x), t / (1 + jnp.abs(x)) ** 2


@jax.custom_vjp
def rounded(x):
    """The straight-through estimator of rounding."""
    return jnp.round(x)


rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, ct: (ct,))


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.relu6, spike, rounded])
def test_rules_of_custom_derivatives_survive(activation):
    """At 0 an inlined rectifier has the slope ½, an inlined step or rounding none."""
    params = {"v": jnp.arange(1.0, HIDDEN + 1), "w": jnp.zeros((INPUTS, HIDDEN))}

    def value_fn(params, x):
        return jnp.mean(activation(x @ params["w"]) @ params["v"])

    x = normal(3, ROWS, INPUTS)
    space = reduced_space(value_fn, params, x, inner_batches=False)
    assert space.zeros["w"].shape == (ROWS, HIDDEN)
    slope = space.lift(jax.grad(space.value_fn)(space.zeros))
    truth = jax.grad(value_fn)(params, x)
    np.testing.assert_allclose(slope["w"], truth["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slope["v"], truth["v"], atol=1e-6)


@pytest.mark.parametrize("name", ["pathwise", "robbins_monro", "sgld", "importance"])
def test_a_rule_that_closes_over_the_batch(name):
    """It cannot be bound again for a gradient: such losses stay whole."""

    def value_fn(w, x):
        scale = x.sum()

        @jax.custom_vjp
        def scaled(h):
            return h * scale

        scaled.defvjp(lambda h: (h * scale, None), lambda _, ct: (ct * scale,))
        return jnp.sum(scaled(jnp.tanh(x @ w)))

    sampler = {
        "pathwise": lejax.pathwise(4),
        "robbins_monro": lejax.robbins_monro(2, 2, 0.1),
        "sgld": lejax.sgld(3, 0.01),
        "importance": lejax.importance(4),
    }[name]
    step = jax.jit(lejax.step_fn(value_fn, sampler, tau=0.1))
    moved = step(normal(0, INPUTS), jax.random.key(0), normal(1, ROWS, INPUTS))
    assert jnp.isfinite(moved).all()


def test_rows_of_more_digits_than_the_leaf():
    with jax.enable_x64(True):
        w, x = normal(0, INPUTS, 2), 1e45 * normal(1, ROWS, INPUTS)
        assert (w.dtype, x.dtype) == (jnp.float64, jnp.float64)

        def value_fn(w, x):
            return jnp.sum(jnp.tanh(1e-45 * (x @ w.astype(jnp.float64))))

        w = w.astype(jnp.float32)
        zeros = check(value_fn, w, x)
        assert zeros.shape == (INPUTS, 2)


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(
    rows=strategies.integers(1, 9),
    inputs=strategies.integers(1, 9),
    widths=strategies.lists(strategies.integers(1, 5), min_size=1, max_size=3),
    activation=strategies.sampled_from([jnp.tanh, jax.nn.relu, jax.nn.gelu, jnp.sin]),
    transposed=strategies.booleans(),
    leading=strategies.booleans(),
    twice=strategies.booleans(),
    repeated=strategies.booleans(),
    seed=strategies.integers(0, 1000),
)
def test_random_networks(
    rows, inputs, widths, activation, transposed, leading, twice, repeated, seed
):
    keys = iter(jax.random.split(jax.random.key(seed), 10))
    sizes = [inputs, *widths]
    params = [
        {
            "w": jax.random.normal(next(keys), (b, a) if transposed else (a, b)),
            "b": jax.random.normal(next(keys), (b,)),
        }
        for a, b in itertools.pairwise(sizes)
    ]
    x = jax.random.normal(next(keys), (rows, inputs))
    x = x.at[-1].set(x[0]) if repeated else x
    x = x[None] if leading else x

    def forward(params, x):
        for layer in params:
            w = layer["w"].T if transposed else layer["w"]
            x = activation(x @ w + layer["b"])
        return jnp.mean(x)

    def value_fn(params, x):
        return forward(params, x) + (forward(params, jnp.cos(x)) if twice else 0.0)

    zeros = check(value_fn, params, x, rtol=1e-4)
    met = rows * (2 if twice else 1)
    drawn = zeros[0]["w"].shape
    first = params[0]["w"].shape
    assert drawn == ((met, widths[0]) if met < inputs else first)
    assert all(
        a["w"].shape == b["w"].shape for a, b in zip(zeros[1:], params[1:], strict=True)
    )
