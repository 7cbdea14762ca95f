"""The reduction where members of a named axis, or of a mesh, share the samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from test_reduction_composition import PARAMS, TAU, X, assert_close, network

import lejax

pytestmark = pytest.mark.compiles


def test_members_of_a_mesh_share_reduced_samples():
    """Under the default checks of shard_map the loss differs over the axis."""
    mesh = jax.make_mesh((1,), ("member",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec()

    def step(params, x, axis_name=None, **options):
        sampler = lejax.importance(12, axis_name=axis_name, **options)
        return lejax.step_fn(network, sampler, TAU)(params, jax.random.key(0), x)

    for in_law in (False, True):
        sharded = jax.shard_map(
            lambda p, x, in_law=in_law: step(p, x, "member", sample_complement=in_law),
            mesh=mesh,
            in_specs=(spec, spec),
            out_specs=spec,
        )
        assert_close(
            jax.jit(sharded)(PARAMS, X),
            step(PARAMS, X, sample_complement=in_law),
            atol=1e-5,
        )


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


def test_members_of_an_axis_share_reduced_samples():
    def step(axis_name, sample_complement):
        sampler = lejax.importance(
            16, axis_name=axis_name, sample_complement=sample_complement
        )
        return lejax.step_fn(network, sampler, TAU)(PARAMS, jax.random.key(3), X)

    for in_law in (False, True):
        alone = step(None, in_law)
        members = jax.vmap(
            lambda _, in_law=in_law: step("member", in_law), axis_name="member"
        )(jnp.arange(2))
        assert_close(
            members, jax.tree.map(lambda p: jnp.stack([p, p]), alone), atol=1e-5
        )
