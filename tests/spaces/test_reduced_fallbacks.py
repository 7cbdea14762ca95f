"""Where the reader meets what it does not know, a leaf stays whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from cases.reduction import HIDDEN, INPUTS, ROWS, check, kernel_and, normal
from cases.spaces import reduced

import lejax

# Flax and Equinox promote on their own.
pytestmark = pytest.mark.standard


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

        space = reduced(value_fn, normal(0, INPUTS), x, inner_batches=False)
        assert space.zeros.shape == (INPUTS,)
        return x

    jax.vmap(member, axis_name="data")(normal(1, 2, ROWS, INPUTS))


def test_a_convolution_stays_whole():
    def value_fn(kernel, x):
        return jnp.mean(jnp.tanh(jax.lax.conv(x, kernel, (1, 1), "SAME")))

    kernel, x = normal(0, 4, 2, 3, 3), normal(1, 1, 2, 5, 5)
    zeros = check(value_fn, kernel, x)
    assert zeros.shape == kernel.shape


@pytest.mark.parametrize(
    "name",
    [
        "pathwise",
        "importance",
        pytest.param("robbins_monro", marks=pytest.mark.slow),
        pytest.param("sgld", marks=pytest.mark.slow),
    ],
)
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


def test_a_rectifier_does_not_close_over_the_trace_around_it():
    """What else is traced, in the programs that the loss is a part of."""

    def value_fn(w, x):
        return jnp.mean(jax.nn.relu(x @ w))

    def update(w, x):
        space = reduced(value_fn, w, x, inner_batches=False)
        assert space.zeros.shape == (ROWS, 2)
        return space.lift(space.zeros), None

    def run(w, seed, xs):
        w = w + jax.random.normal(jax.random.key(seed), w.shape)  # traced before
        return jax.lax.scan(update, w, xs)[0]

    mapped = jax.vmap(jax.vmap(run, (0, None, None)), (None, 0, None))
    xs = normal(1, 2, ROWS, INPUTS)
    jax.jit(mapped)(normal(0, 2, INPUTS, 2), jnp.arange(3), xs)


def test_rows_of_more_digits_than_the_leaf():
    with jax.enable_x64(True):
        w, x = normal(0, INPUTS, 2), 1e45 * normal(1, ROWS, INPUTS)
        assert (w.dtype, x.dtype) == (jnp.float64, jnp.float64)

        def value_fn(w, x):
            return jnp.sum(jnp.tanh(1e-45 * (x @ w.astype(jnp.float64))))

        w = w.astype(jnp.float32)
        zeros = check(value_fn, w, x)
        assert zeros.shape == (INPUTS, 2)
