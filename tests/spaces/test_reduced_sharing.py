"""The reduction where members of a named axis, or of a mesh, share the samples."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from test_reduced_composition import PARAMS, TAU, X, assert_close, network

import lejax


@pytest.mark.parametrize("in_law", [pytest.param(False, marks=pytest.mark.slow), True])
def test_members_of_a_mesh_share_reduced_samples(in_law):
    """Under the default checks of shard_map the loss differs over the axis."""
    mesh = jax.make_mesh((1,), ("member",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec()

    def step(params, x, axis_name=None, **options):
        sampler = lejax.importance(12, axis_name=axis_name, credit=False, **options)
        return lejax.step_fn(network, sampler, TAU)(params, jax.random.key(0), x)

    alone = functools.partial(step, sample_complement=in_law)
    sharded = jax.shard_map(
        functools.partial(alone, axis_name="member"),
        mesh=mesh,
        in_specs=(spec, spec),
        out_specs=spec,
    )
    assert_close(jax.jit(sharded)(PARAMS, X), jax.jit(alone)(PARAMS, X), atol=1e-5)


def test_rows_on_an_explicit_mesh_stay_whole():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = jax.device_put(X, jax.NamedSharding(mesh, jax.P("d")))
    (leaf,) = lejax.reduction_report(
        lambda w, x: jnp.mean(jnp.tanh(x @ w)), PARAMS["w"], x
    ).leaves
    assert (leaf.reduced_shape, leaf.reason) == (
        (8, 2),
        "sharded over an explicit mesh",
    )


@pytest.mark.parametrize("in_law", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_members_of_an_axis_share_reduced_samples(in_law):
    def step(params, x, axis_name=None, **options):
        sampler = lejax.importance(16, axis_name=axis_name, credit=False, **options)
        return lejax.step_fn(network, sampler, TAU)(params, jax.random.key(3), x)

    alone = functools.partial(step, sample_complement=in_law)
    shared = jax.vmap(
        functools.partial(alone, axis_name="member"),
        in_axes=None,
        axis_name="member",
        axis_size=2,
    )
    one = jax.jit(alone)(PARAMS, X)
    assert_close(
        jax.jit(shared)(PARAMS, X),
        jax.tree.map(lambda p: jnp.stack([p, p]), one),
        atol=1e-5,
    )
