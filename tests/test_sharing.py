"""Samplers whose draws are shared by the members of a named axis."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lejax

SAMPLERS = {
    "importance": lambda **axis: lejax.importance(17, chunk_size=4, **axis),
    "pairs": lambda **axis: lejax.importance(16, chunk_size=4, **axis),
    "few samples": lambda **axis: lejax.importance(3, **axis),
    "plain": lambda **axis: lejax.importance(7, antithetic=False, **axis),
    "signs": lambda **axis: lejax.importance(24, signs_per_draw=3, **axis),
    "pathwise": lambda **axis: lejax.pathwise(7, **axis),
    "score_function": lambda **axis: lejax.score_function(7, **axis),
    "robbins_monro": lambda **axis: lejax.robbins_monro(3, 7, 0.3, **axis),
}
X = jnp.linspace(-1.0, 1.0, 5)


def f(x):
    """A loss that fails at some of the draws."""
    value = jnp.sum(jnp.sin(3 * x) + x**2)
    return jnp.where(x[0] < -1.5, jnp.nan, value)


def run(sampler):
    """All that a sampler says: value, info and gradient."""
    return lejax.value_and_grad(f, sampler, 0.3)(X, jax.random.key(3))


def alone(make):
    """The same without an axis."""
    return jax.jit(lambda: run(make()))()


def assert_same(found, expected):
    """To the rounding of sums in another order."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_members_of_an_axis_share_the_samples(name):
    """1, 2 and 4 members give the same update and info, whatever J is."""
    make = SAMPLERS[name]
    expected = alone(make)
    of_all = jax.jit(
        jax.vmap(lambda _: run(make(axis_name="member")), axis_name="member")
    )
    for members in (1, 2, 4):
        found = of_all(jnp.arange(members))
        for leaf in jax.tree.leaves(found):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
        assert_same(jax.tree.map(lambda x: x[0], found), expected)


def on_devices(count):
    """The same on a mesh of devices: `shard_map` with its checks, and `pmap`."""
    devices = jax.devices()[:count]
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((count,), ("member",), auto, devices=devices)
    for name in ("importance", "score_function", "robbins_monro"):
        make = SAMPLERS[name]
        expected, shared = alone(make), make(axis_name="member")
        sharded = jax.shard_map(
            lambda shared=shared: run(shared),
            mesh=mesh,
            in_specs=(),
            out_specs=jax.P(),
        )
        assert_same(jax.jit(sharded)(), expected)
        mapped = jax.pmap(
            lambda _, shared=shared: run(shared), axis_name="member", devices=devices
        )
        found = mapped(jnp.arange(count))
        assert_same(jax.tree.map(lambda x: x[count - 1], found), expected)


def test_one_device():
    on_devices(1)


def test_four_devices():
    """In a process of its own: devices are counted when JAX starts."""
    flags = "--xla_force_host_platform_device_count=4"
    subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parent,
        check=True,
        timeout=600,
    )


if __name__ == "__main__":
    on_devices(4)
