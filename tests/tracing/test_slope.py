"""Which losses have no gradient, and are refused by samplers that need one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import lejax
from lejax._tracing.slope import has_slope

X = jnp.array([0.3, -1.2, 2.0])


def spikes(x):
    """A hard threshold in a scan, whose output is counted."""

    def step(v, _):
        v = 0.9 * v + x
        out = (v > 1).astype(v.dtype)
        return v - out, out

    return jax.lax.scan(step, jnp.zeros(3), length=4)[1].sum()


FLAT = {
    "mistakes": lambda x: jnp.mean((x > 0) != jnp.array([True, False, True])),
    "a branch": lambda x: jnp.where(x > 0, 1.0, 0.0).sum(),
    "rounding": lambda x: jnp.round(x).sum() + jnp.floor(x).sum() + jnp.sign(x).sum(),
    "the largest": lambda x: jnp.argmax(x).astype(x.dtype),
    "stopped": lambda x: jax.lax.stop_gradient(x).sum(),
    "a constant": lambda x: jnp.ones(()),
    "a choice of counts": lambda x: jax.lax.cond(
        x[0] > 0, lambda x: jnp.sign(x).sum(), lambda x: jnp.zeros(()), x
    ),
    "spikes": spikes,
}
SLOPING = {
    "a square": lambda x: x @ x,
    "an absolute value": lambda x: jnp.abs(x).sum(),
    "a branch": lambda x: jnp.where(x > 0, x, 0.0).sum(),
    "straight through": lambda x: (x + jax.lax.stop_gradient(jnp.sign(x) - x)).sum(),
    "a choice": lambda x: jax.lax.cond(x[0] > 0, jnp.sum, lambda x: 0.0, x),
    "a carry": lambda x: jax.lax.scan(lambda c, v: (c + v, c), 0.0, x)[0],
    "a carry, one step late": lambda x: jax.lax.scan(
        lambda c, v: ((c[1], v), None), (0.0, 0.0), x
    )[0][0],
    "a rule": lambda x: jax.nn.relu(x).sum(),
    "a loop": lambda x: jax.lax.while_loop(lambda c: c[0] < 9, lambda c: 2 * c, x)[0],
}


@pytest.mark.parametrize("name", FLAT)
def test_no_slope(name):
    loss = FLAT[name]
    assert not jnp.any(jax.grad(loss)(X))
    assert not has_slope(jax.make_jaxpr(loss)(X).jaxpr, 1)


@pytest.mark.parametrize("name", SLOPING)
def test_slope(name):
    assert has_slope(jax.make_jaxpr(SLOPING[name])(X).jaxpr, 1)


def test_arguments_that_are_not_perturbed_do_not_count():
    closed = jax.make_jaxpr(lambda x, y: y @ y + jnp.sign(x).sum())(X, X)
    assert not has_slope(closed.jaxpr, 1)


@pytest.mark.parametrize(
    "sampler",
    [lejax.pathwise(2), lejax.robbins_monro(2, 2, 0.5), lejax.sgld(3, 0.01)],
    ids=lambda sampler: sampler.name,
)
def test_samplers_of_gradients_refuse_it(sampler):
    message = r"value_fn has no gradient: .*use importance or score_function"
    with pytest.raises(ValueError, match=message):
        lejax.step_fn(FLAT["mistakes"], sampler, tau=0.1)(X, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        lejax.minimize(
            FLAT["mistakes"], X, sampler=sampler, tau=0.1, key=jax.random.key(0)
        )
