"""Samplers whose draws, or data, are shared by the members of named axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_on_four_devices

import lejax

pytestmark = pytest.mark.compiles
SAMPLERS = {
    "importance": lambda **axis: lejax.importance(17, chunk_size=4, **axis),
    "pairs": lambda **axis: lejax.importance(16, chunk_size=4, **axis),
    "centred": lambda **axis: lejax.importance(
        17, antithetic=False, credit=True, **axis
    ),
    "no credit": lambda **axis: lejax.importance(17, credit=False, **axis),
    "heat, no credit": lambda **axis: lejax.score_function(7, credit=False, **axis),
    "few samples": lambda **axis: lejax.importance(3, **axis),
    "plain": lambda **axis: lejax.importance(7, antithetic=False, **axis),
    "signs": lambda **axis: lejax.importance(24, signs_per_draw=3, **axis),
    "adapted": lambda **axis: lejax.importance(17, target_share=0.5, **axis),
    "pathwise": lambda **axis: lejax.pathwise(7, **axis),
    "score_function": lambda **axis: lejax.score_function(7, **axis),
    "robbins_monro": lambda **axis: lejax.robbins_monro(3, 7, 0.3, **axis),
    "chains": lambda **axis: lejax.sgld(6, 0.05, num_chains=4, **axis),
    "three chains": lambda **axis: lejax.sgld(6, 0.05, num_chains=3, **axis),
    "one chain": lambda **axis: lejax.sgld(6, 0.05, **axis),
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


def without_noise(tree):
    """Infos without what depends on the layout: test_noise.py has it by replicates."""
    noise = dict.fromkeys(("squared_error", "signal", "signal_error"))
    return jax.tree.map(
        lambda x: x._replace(**noise) if is_info(x) else x, tree, is_leaf=is_info
    )


def is_info(x):
    return isinstance(x, lejax.Info)


def assert_same(found, expected):
    """To the rounding of sums in another order."""
    found, expected = without_noise(found), without_noise(expected)
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
    for name in ("importance", "score_function", "robbins_monro", "three chains"):
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


ROWS = jax.random.normal(jax.random.key(8), (8, 40))
TOKENS = jnp.array([[3, 1], [0, 3], [7, 7], [2, 9], [3, 5], [11, 1], [90, 4], [6, 6]])
PARAMS = {
    "w": 0.1 * jax.random.normal(jax.random.key(9), (40, 3)),
    "table": jax.random.normal(jax.random.key(10), (50, 3)),
    "v": jnp.array([1.0, -2.0, 0.5]),
}
BATCH = (ROWS, TOKENS)


def network(params, batch):
    """Both kinds of reduction: a kernel seen by rows, a table read by some."""
    rows, tokens = batch
    hidden = rows @ params["w"] + params["table"].at[tokens].get(mode="clip").sum(1)
    return jnp.mean((jnp.tanh(hidden) @ params["v"]) ** 2)


def network_step(sampler, batch):
    return lejax.value_and_grad(network, sampler, 0.3)(PARAMS, jax.random.key(3), batch)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("reduction", [True, False])
@pytest.mark.parametrize("name", SAMPLERS)
def test_members_of_an_axis_share_the_data(name, reduction, parts):
    """The mean loss of the parts is the loss of the whole, before the exponential.

    The members draw in the directions that any of their rows sees.
    """
    make = SAMPLERS[name]
    whole = jax.jit(lambda: network_step(make(reduction=reduction), BATCH))()
    shared = make(data_axis_name="part", reduction=reduction)
    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), BATCH)
    found = jax.jit(
        jax.vmap(lambda part: network_step(shared, part), axis_name="part")
    )(split)
    assert_same(jax.tree.map(lambda x: x[parts - 1], found), whole)


@pytest.mark.parametrize("name", ["importance", "robbins_monro", "three chains"])
def test_members_of_two_axes_share_both(name):
    make = SAMPLERS[name]
    whole = jax.jit(lambda: network_step(make(), BATCH))()
    shared = make(axis_name="member", data_axis_name="part")
    split = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), BATCH)
    of_parts = jax.vmap(lambda part: network_step(shared, part), axis_name="part")
    found = jax.jit(
        jax.vmap(lambda _: of_parts(split), axis_name="member"),
    )(jnp.arange(2))
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
        first, second = (jax.tree.map(lambda x, i=i: x[i], found) for i in (0, 1))
        assert_same(first, second)
        if not reduction:
            assert_same(first, step(reduction, batches))


def on_a_mesh_of_data(count):
    """Data over devices, under the checks of `shard_map` and under `pmap`."""
    mesh = jax.make_mesh((count,), ("part",), (jax.sharding.AxisType.Auto,))
    split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), BATCH)
    for name in ("importance", "pathwise", "three chains"):
        whole = jax.jit(lambda name=name: network_step(SAMPLERS[name](), BATCH))()
        shared = SAMPLERS[name](data_axis_name="part")

        def step(part, shared=shared):
            return network_step(shared, part)

        sharded = jax.shard_map(
            step, mesh=mesh, in_specs=jax.P("part"), out_specs=jax.P()
        )
        assert_same(jax.jit(sharded)(BATCH), whole)
        found = jax.pmap(step, axis_name="part")(split)
        assert_same(jax.tree.map(lambda x: x[count - 1], found), whole)


def test_state_of_other_chains():
    """A state that was not split is refused, and the message says how to."""
    sampler = lejax.sgld(3, 0.05, num_chains=4, axis_name="member")
    state = sampler.init(X)

    def step(_):
        return sampler.step(jax.random.key(0), state, X, value_fn=f, tau=0.3)

    with pytest.raises(ValueError, match=r"shape \(4, 5\), not 2 of the num_chains=4"):
        jax.vmap(step, axis_name="member")(jnp.arange(2))


def test_one_name_for_two_axes():
    with pytest.raises(ValueError, match="axis_name and data_axis_name are both 'a'"):
        lejax.importance(10, axis_name="a", data_axis_name="a")


def test_one_device():
    on_devices(1)
    on_a_mesh_of_data(1)


def test_four_devices():
    run_on_four_devices(__file__)


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    on_devices(4)
    on_a_mesh_of_data(4)
