"""Along which axis examples lie apart: every rule against what really depends on it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lejax._tracing.batch_axis import ExamplesMixError, follow_batch_axis
from lejax._tracing.program import read

B, N = 4, 3
rng = np.random.default_rng(0)
Y, OTHER, IMAGES = (
    rng.normal(size=shape).astype(np.float32)
    for shape in ((B, N), (N, 5), (3, 3, 1, 2))
)


def pooled(y, of_two, window, padding=((0, 0), (0, 0)), strides=(1, 1)):
    least = 0.0 if of_two is jax.lax.add else -jnp.inf
    return jax.lax.reduce_window(y, least, of_two, window, strides, padding)


def loop(turn, y, turns=4, **options):
    """The state after a scan, and what it stacked, (B, N) of the first turns."""
    start = jnp.zeros_like(y), 0.0
    xs = jnp.arange(1.0, 1 + turns)
    (state, _), stack = jax.lax.scan(
        lambda carry, x: turn(carry, x, y), start, xs, **options
    )
    return state + stack[1]


def leaky(carry, x, y):
    """Its threshold lets y in; what is carried has no axis before the first turn."""
    state, count = carry
    state = 0.5 * state + x * jnp.where(state > 0.3, -1.0, 1.0) * y + count
    return (state, count + 1.0), jnp.abs(state)


def horner(y, coefficients):
    return coefficients[0] + y * (coefficients[1] + y * coefficients[2])


polynomial = getattr(jax.lax, "polynomial", horner)  # an operation in jax 0.12
APART = {
    "elementwise": lambda y: jnp.tanh(y) * jnp.arange(12.0).reshape(B, N),
    "of two": lambda y: jnp.maximum(y, y**2) - jnp.where(y > 0, y, 2 * y),
    "of versions": lambda y: (
        jnp.log2(1 + y**2) + jax.grad(lambda y: jnp.tanh(y).sum())(y)
    ),
    "polynomial": lambda y: polynomial(y, [1.0, 5.0, 2.0]),
    "repeated": lambda y: y - y.max(1, keepdims=True),
    "transposed": lambda y: y.T,
    "broadcast": lambda y: jnp.broadcast_to(y[None, :, None], (2, B, 6, N)),
    "reshaped": lambda y: (y[:, :, None] * jnp.ones(2)).reshape(B, 2 * N),
    "reshaped, among equals": lambda y: (jnp.ones((B, 1, 1)) * y).reshape(B, B, N, 1),
    "squeezed": lambda y: y[:, :, None][:, :, 0],
    "sums": lambda y: y.sum(1) + y.max(1) + y.prod(1) + y.argmax(1).astype(y.dtype),
    "sums of columns": lambda y: y.T.sum(0),
    "cumulated": lambda y: jnp.cumsum(y, 1) + jax.lax.cumlogsumexp(y, 1),
    "sorted": lambda y: jnp.sort(y, 1),
    "turned": lambda y: y[:, ::-1],
    "sliced": lambda y: y[:, 1:],
    "joined": lambda y: jnp.concatenate([y, y**2], 1),
    "split": lambda y: jnp.subtract(*jnp.split(y[:, :2], 2, 1)),
    "product": lambda y: y @ OTHER,
    "product, second": lambda y: OTHER.T @ y.T,
    "product by example": lambda y: jnp.einsum("bn,bn->b", y, y**2),
    "chosen by example": lambda y: jnp.take_along_axis(
        y, jnp.arange(B)[:, None] % N, 1
    ),
    "chosen for all": lambda y: jnp.take(y, jnp.array([2, 0]), 1),
    "convolved": lambda y: jax.lax.conv_general_dilated(
        jnp.ones((B, 3, 3, 1)) * y[:, :1, None, None],
        IMAGES,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "padded": lambda y: jnp.pad(y, ((0, 0), (1, 2))),
    "largest of a window": lambda y: pooled(y, jax.lax.max, (1, 2)),
    "sums of a window": lambda y: pooled(y, jax.lax.add, (1, 3)),
    "loop": lambda y: loop(leaky, y),
    "loop over positions": lambda y: (
        jax.lax.scan(lambda state, x: (state + x**2, state * x), jnp.zeros(B), y.T)[1].T
    ),
    "loop that forgets": lambda y: jax.lax.scan(
        lambda state, _: (jnp.ones_like(state), state), y, length=2
    )[1],
    "loop, backwards": lambda y: loop(leaky, y, reverse=True, unroll=2),
    "loop over one of two": lambda y: jax.lax.scan(
        lambda carry, _: ((carry[1], jnp.sin(carry[1]) + y), None),
        (jnp.ones((B, N)), jnp.ones((B, N))),
        length=3,
    )[0][0],
    "custom rules": lambda y: jax.nn.relu(y) + jax.nn.silu(y),
}
MEETING = {
    "sum": lambda y: y.sum(0) + y,
    "largest": lambda y: y - y.max(0),
    "cumulated": lambda y: jnp.cumsum(y, 0),
    "sorted": lambda y: jnp.sort(y, 0),
    "turned": lambda y: y[::-1],
    "sliced": lambda y: y[1:],
    "split": lambda y: jnp.subtract(*jnp.split(y, 2, 0)),
    "rolled": lambda y: jnp.roll(y, 1, 0),
    "joined": lambda y: jnp.concatenate([y, y], 0),
    "flat": lambda y: y.ravel(),
    "product": lambda y: jnp.ones((B, B)) @ y,
    "scan": lambda y: loop(
        lambda carry, x, y: ((jnp.roll(carry[0], 1, 0) + y, 0.0), y), y
    ),
    "scan that moves them": lambda y: jax.lax.scan(
        lambda state, _: (jnp.sin(state.T), None), y @ jnp.ones((N, B)), length=2
    )[0],
    "scan over examples": lambda y: jax.lax.scan(
        lambda state, x: (state + x, state + x), jnp.zeros(N), y
    )[1],
    "halves": lambda y: y.reshape(2, 6),
    "with itself": lambda y: y @ y.T,
    "chosen": lambda y: jnp.take(y, jnp.array([1, 0, 3, 2]), 0),
    "chosen by all": lambda y: jnp.take(y, y.argmax(1), 1),
    "padded": lambda y: jnp.pad(y, ((1, 0), (0, 0))),
    "largest of a window": lambda y: pooled(y, jax.lax.max, (2, 1)),
    "windows that are padded": lambda y: pooled(
        y, jax.lax.add, (1, 1), ((1, 0), (0, 0))
    ),
    "every other": lambda y: pooled(y, jax.lax.max, (1, 2), strides=(2, 1)),
    "windows": lambda y: jax.vmap(lambda i: jax.lax.dynamic_slice(y, (i, 0), (2, N)))(
        jnp.array([0, 1])
    ),
    "by itself": lambda y: jnp.take(jnp.arange(9.0), y.argmax(1).sum()) * y,
    "across axes": lambda y: y[:, :N] + jnp.pad(y.T, ((0, 1), (0, 0)))[:, :N],
    "loop": lambda y: jax.lax.fori_loop(0, 2, lambda _, z: jnp.roll(z, 1, 0), y),
}


def axis_of(fn):
    closed = jax.make_jaxpr(fn)(Y)
    program = read(closed.jaxpr, closed.consts)
    (number,) = program.inputs
    return follow_batch_axis(program, program.operations, {number: 0}).get(
        program.output
    )


def example_of_place(fn, axis):
    """Whether the place i along the axis changes with the example i alone."""
    run = jax.jit(fn)
    before = np.moveaxis(np.asarray(run(Y)), axis, 0)
    for i in range(B):
        others = np.arange(B) != i
        moved = np.where(others[:, None], Y, 11 * Y + 3)
        after = np.moveaxis(np.asarray(run(moved)), axis, 0)
        if len(before) != B or not np.allclose(before[others], after[others]):
            return False
    return True


@pytest.mark.parametrize("name", APART)
def test_apart(name):
    assert example_of_place(APART[name], axis_of(APART[name]))


@pytest.mark.parametrize("name", MEETING)
def test_meeting(name):
    with pytest.raises(ExamplesMixError, match="examples meet in"):
        axis_of(MEETING[name])
