"""Samplers whose draws, or data, are shared by the members of named axes."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.devices import run_on_four_devices
from cases.members import BATCH, PARAMS, SAMPLERS, X, assert_same, f, network

import lejax

ON_DEVICES = ("importance", "score_function", "robbins_monro", "three chains")
DATA_ON_DEVICES = ("importance", "pathwise", "three chains")


def run(sampler):
    """All that a sampler says: value, info and gradient."""
    return lejax.value_and_grad(f, sampler, 0.3)(X, jax.random.key(3))


@functools.cache
def alone(name):
    """The same without an axis."""
    return jax.jit(lambda: run(SAMPLERS[name]()))()


def by_default(names, factors, some):
    """The product of the factors; what is not among some is of the full suite."""
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(*case, marks=() if case in some else pytest.mark.slow)
            for case in itertools.product(*factors)
        ],
    )


# By default every kind of sampler, by one axis or the other; one member is a device.
SHARE_SAMPLES = {
    ("few samples", 4),
    ("signs", 2),
    ("adapted", 2),
    ("score_function", 4),
    ("robbins_monro", 2),
    ("three chains", 2),
    ("one chain", 2),
}


@by_default("name, members", (SAMPLERS, (1, 2, 4)), SHARE_SAMPLES)
def test_members_of_an_axis_share_the_samples(name, members):
    """1, 2 and 4 members give the same update and info, whatever J is."""
    make = SAMPLERS[name]
    of_all = jax.jit(
        jax.vmap(lambda _: run(make(axis_name="member")), axis_name="member")
    )
    found = jax.device_get(of_all(jnp.arange(members)))
    for leaf in jax.tree.leaves(found):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
    assert_same(jax.tree.map(lambda x: x[0], found), alone(name))


def on_devices(count, names=ON_DEVICES):
    """The same on a mesh of devices: `shard_map` with its checks, and `pmap`."""
    devices = jax.devices()[:count]
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((count,), ("member",), auto, devices=devices)
    for name in names:
        expected, shared = alone(name), SAMPLERS[name](axis_name="member")
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
        found = jax.device_get(mapped(jnp.arange(count)))
        assert_same(jax.tree.map(lambda x: x[count - 1], found), expected)


def network_step(sampler, batch):
    return lejax.value_and_grad(network, sampler, 0.3)(PARAMS, jax.random.key(3), batch)


@functools.cache
def network_alone(name, reduction=True):
    """Of the whole batch, without an axis."""
    sampler = SAMPLERS[name](reduction=reduction)
    return jax.jit(lambda: network_step(sampler, BATCH))()


SHARE_DATA = {
    ("centred", True, 2),
    ("signs", False, 4),
    ("pathwise", True, 2),
    ("score_function", True, 2),
    ("robbins_monro", False, 2),
    ("three chains", True, 4),
}


@by_default("name, reduction, parts", (SAMPLERS, (True, False), (2, 4)), SHARE_DATA)
def test_members_of_an_axis_share_the_data(name, reduction, parts):
    """The mean loss of the parts is the loss of the whole, before the exponential.

    The members draw in the directions that any of their rows sees.
    """
    whole = network_alone(name, reduction)
    shared = SAMPLERS[name](data_axis_name="part", reduction=reduction)
    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), BATCH)
    of_all = jax.jit(
        jax.vmap(lambda part: network_step(shared, part), axis_name="part")
    )
    found = jax.device_get(of_all(split))
    assert_same(jax.tree.map(lambda x: x[parts - 1], found), whole)


@by_default(
    "name", (["importance", "robbins_monro", "three chains"],), {("importance",)}
)
def test_members_of_two_axes_share_both(name):
    whole = network_alone(name)
    shared = SAMPLERS[name](axis_name="member", data_axis_name="part")
    split = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), BATCH)
    of_parts = jax.vmap(lambda part: network_step(shared, part), axis_name="part")
    of_all = jax.jit(jax.vmap(lambda _: of_parts(split), axis_name="member"))
    found = jax.device_get(of_all(jnp.arange(2)))
    assert_same(jax.tree.map(lambda x: x[1, 0], found), whole)


def test_inner_batches_are_split_too():
    """Q of other rows' order is another basis: the same law, not the same numbers."""

    def step(reduction, batches, axis=None):
        sampler = lejax.sgld(
            7, 0.05, inner_batches=True, data_axis_name=axis, reduction=reduction
        )
        return network_step(sampler, batches)

    batches = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), BATCH)
    split = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(2, 2, 2, *x.shape[2:]), 1, 0), batches
    )
    for reduction in (True, False):
        found = jax.jit(
            jax.vmap(
                lambda part, reduction=reduction: step(reduction, part, "part"),
                axis_name="part",
            )
        )(split)
        found = jax.device_get(found)
        first, second = (jax.tree.map(lambda x, i=i: x[i], found) for i in (0, 1))
        assert_same(first, second)
        if not reduction:
            assert_same(first, jax.jit(functools.partial(step, reduction))(batches))


def on_a_mesh_of_data(count, names=DATA_ON_DEVICES):
    """Data over devices, under the checks of `shard_map` and under `pmap`."""
    mesh = jax.make_mesh((count,), ("part",), (jax.sharding.AxisType.Auto,))
    split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), BATCH)
    for name in names:
        whole = network_alone(name)
        shared = SAMPLERS[name](data_axis_name="part")

        def step(part, shared=shared):
            return network_step(shared, part)

        sharded = jax.shard_map(
            step, mesh=mesh, in_specs=jax.P("part"), out_specs=jax.P()
        )
        assert_same(jax.jit(sharded)(BATCH), whole)
        found = jax.device_get(jax.pmap(step, axis_name="part")(split))
        assert_same(jax.tree.map(lambda x: x[count - 1], found), whole)


def test_state_of_other_chains():
    """A state that was not split is refused, and the message says how to."""
    sampler = lejax.sgld(3, 0.05, num_chains=4, axis_name="member", warm_start=True)
    state = sampler.init(X)

    def step(_):
        return sampler.estimate(jax.random.key(0), state, X, value_fn=f, tau=0.3)

    with pytest.raises(ValueError, match=r"shape \(4, 5\), not 2 of the num_chains=4"):
        jax.vmap(step, axis_name="member")(jnp.arange(2))


def test_one_name_for_two_axes():
    with pytest.raises(ValueError, match="axis_name and data_axis_name are both 'a'"):
        lejax.importance(10, axis_name="a", data_axis_name="a")


def test_one_device():
    on_devices(1, ["three chains"])
    on_a_mesh_of_data(1, ["three chains"])


@pytest.mark.slow
def test_one_device_and_every_sampler():
    on_devices(1)
    on_a_mesh_of_data(1)


@pytest.mark.slow
def test_four_devices():
    run_on_four_devices(__file__)


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    on_devices(4)
    on_a_mesh_of_data(4)
