"""Forward-only heat: each example draws apart, and the heat is the same."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.per_example import (
    LOSSES,
    PARAMS,
    ROWS,
    batch_norm,
    dense,
    linear,
    network,
    normal,
    of,
    penalised,
)
from cases.problems import assert_mean, replicate

import lejax


def estimates(
    loss, params, batch, tau, num_samples, replicates=1000, credit=False, **options
):
    """Displacements, numbers of leaf after leaf, and the values of F^H."""

    def one(key, params, batch, tau):
        u, _, info = lejax.score_function(
            num_samples, credit=credit, **options
        ).estimate(key, (), params, value_fn=loss, batch=batch, tau=tau)
        leaves = jax.tree.leaves(u)
        return jnp.concatenate([leaf.ravel() for leaf in leaves]), info

    return replicate(one, replicates, given=(params, batch, tau))


@pytest.mark.parametrize(
    ("tau", "antithetic"),
    [
        (0.3, True),
        (1.5, False),
        pytest.param(0.3, False, marks=pytest.mark.slow),
        pytest.param(1.5, True, marks=pytest.mark.slow),
    ],
)
def test_against_quadrature(tau, antithetic):
    """-τ∇F^H of two layers of two units, a leaf in no layer among them."""
    params = {"a": jnp.float32(0.4), "v": normal(6, 1), "w": normal(7, 1, 2)}
    x, y = jnp.array([[0.5], [-1.0], [2.0]]), jnp.array([0.3, 1.0, -0.7])

    def loss(params, x):
        hidden = jnp.tanh(x @ params["w"]) * jnp.array([1.0, -0.5]) + 0.1
        hidden = hidden.sum(1, keepdims=True) * params["a"]
        return jnp.mean(jnp.exp(jnp.sin((hidden @ params["v"]) * y)))

    noise = np.linspace(-5.4, 5.4, 37)
    axis, phi = np.sqrt(tau) * noise, np.exp(-(noise**2) / 2)
    grid = np.stack(np.meshgrid(*[axis] * 4, indexing="ij"), -1).reshape(-1, 4)
    weight = functools.reduce(np.multiply.outer, [phi / phi.sum()] * 4).ravel()

    def at(u):
        a, v, w = params["a"] + u[0], params["v"] + u[1:2], params["w"] + u[None, 2:]
        return loss({"a": a, "v": v, "w": w}, x)

    f = jax.jit(lambda us: jax.lax.map(at, us, batch_size=2**14))(
        jnp.asarray(grid, jnp.float32)
    )
    weight = weight * np.asarray(f, np.float64)
    found, info = estimates(
        loss, params, x, tau, 500, credit=True, antithetic=antithetic
    )
    assert (info.num_evaluations == 501).all()
    assert_mean(found, -weight @ grid)
    assert_mean(info.objective, weight.sum())


@pytest.mark.parametrize(
    "name",
    [
        name if name == "errors" else pytest.param(name, marks=pytest.mark.slow)
        for name in LOSSES
    ],
)
def test_the_same_heat_with_less_noise(name):
    """As by draws that all examples have in common, in the mean of every number."""
    ours, info = estimates(network(name), PARAMS, ROWS, 0.3, 100, credit=True)
    theirs, their_info = estimates(network(name), PARAMS, ROWS, 0.3, 100)
    assert_mean(ours - theirs, 0.0)
    assert_mean(info.objective - their_info.objective, 0.0)
    assert np.var(ours, 0).sum() < 0.6 * np.var(theirs, 0).sum()


@pytest.mark.parametrize(
    "forward", [batch_norm, linear, pytest.param(penalised, marks=pytest.mark.slow)]
)
def test_the_same_heat_of_other_networks(forward):
    """Leaves in no layer among them, and inputs that are a product themselves."""
    params = {"v": PARAMS["v"], "w": PARAMS["w"]}
    ours, info = estimates(of(forward), params, ROWS, 0.1, 50, credit=True)
    theirs, _ = estimates(of(forward), params, ROWS, 0.1, 50)
    assert (info.num_evaluations == 51).all()
    assert_mean(ours - theirs, 0.0)


def activity(params, x):
    """A penalty of the hidden units, beside the sum over the examples."""
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    y = hidden @ params["v"] + params["c"]
    return jnp.mean(LOSSES["cross-entropy"](y)) + jnp.mean(hidden**2) / 2


def curved(params, x):
    mean = jnp.mean(dense(params, x) ** 2)
    return mean + mean**2


def twice(params, x):
    mean = jnp.mean(dense(params, x) ** 2)
    return mean + mean


def strange(params, x):
    each = jnp.mean(dense(params, x) ** 2, 1)
    return jnp.mean(each) + jnp.max(each)


def rounded(params, x):
    """A sum as such, but for the step to the integers behind it."""
    return (jnp.mean(dense(params, x) ** 2) / 3).astype(jnp.int32)


@pytest.mark.parametrize(
    "loss",
    [activity, curved, strange, rounded, pytest.param(twice, marks=pytest.mark.slow)],
)
def test_a_loss_that_is_more_than_the_sum(loss):
    """What reaches it by another way is not drawn by example."""
    ours, _ = estimates(loss, PARAMS, ROWS, 0.1, 50, credit=True)
    theirs, _ = estimates(loss, PARAMS, ROWS, 0.1, 50)
    assert_mean(ours - theirs, 0.0)


@pytest.mark.parametrize(
    "way",
    [
        {"chunk_size": 7},
        {"members": 4, "axis_name": "draws"},
        pytest.param({"members": 2, "axis_name": "draws"}, marks=pytest.mark.slow),
    ],
    ids=["chunks", "four members", "two members"],
)
def test_the_same_by_chunks_and_by_members(way):
    def run(members=None, **options):
        sampler = lejax.score_function(20, credit=True, **options)

        def step(params, batch):
            return sampler.estimate(
                jax.random.key(1),
                (),
                params,
                value_fn=network("cross-entropy"),
                batch=batch,
                tau=0.3,
            )[::2]

        if members:
            step = jax.vmap(
                step, in_axes=None, axis_name=options["axis_name"], axis_size=members
            )
        found = jax.device_get(jax.jit(step)(PARAMS, ROWS))
        return jax.tree.map(lambda leaf: leaf[-1], found) if members else found

    for mine, other in zip(*map(jax.tree.leaves, (run(), run(**way))), strict=True):
        np.testing.assert_allclose(mine, other, 1e-4, 1e-6)


def penalised_network(params, x):
    return jnp.mean(jnp.tanh(x @ params["w"] + params["b"]) ** 2) + params["a"] ** 2


def of_members(params, parts):
    """Displacements by two members with a part of the examples each."""
    sampler = lejax.score_function(50, credit=True, data_axis_name="rows")

    def one(key, params, parts):
        step = lambda part: sampler.estimate(  # noqa: E731
            key, (), params, value_fn=penalised_network, batch=part, tau=0.3
        )[0]
        leaves = jax.tree.leaves(jax.vmap(step, axis_name="rows")(parts))
        return jnp.concatenate([leaf.reshape(2, -1) for leaf in leaves], 1)

    return replicate(one, 1000, given=(params, parts))


def few_parameters():
    return {"a": jnp.float32(0.5), "b": normal(12, 2), "w": normal(13, 3, 2)}


def test_members_that_hold_the_data():
    """Their examples draw apart as well; the others' leaves in common."""
    params, batch = few_parameters(), normal(14, 4, 3)
    found = of_members(params, batch.reshape(2, 2, 3))
    np.testing.assert_allclose(found[:, 0], found[:, 1], 1e-5, 1e-6)
    whole, _ = estimates(penalised_network, params, batch, 0.3, 50)
    assert_mean(found[:, 0] - whole, 0.0)


def test_members_with_the_same_examples_are_twice_the_draws():
    params, batch = few_parameters(), normal(14, 4, 3)[:2]
    twice = of_members(params, jnp.stack([batch] * 2))[:, 0, 1:]
    once, _ = estimates(penalised_network, params, batch, 0.3, 50, credit=True)
    assert 0.4 < np.var(twice, 0).sum() / np.var(once[:, 1:], 0).sum() < 0.62


def test_draws_that_fail_are_left_out():
    def loss(params, x):
        y = x @ params["w"] + params["b"]
        return jnp.mean(jnp.where(y[:, 0] > 2, jnp.nan, jnp.sum(y**2, 1)))

    params = {"b": jnp.zeros(4), "w": PARAMS["w"]}
    found, info = estimates(loss, params, ROWS, 0.3, 50, replicates=20, credit=True)
    assert jnp.isfinite(found).all()
    assert (info.nonfinite_fraction > 0).any()
    assert (info.nonfinite_fraction < 1).all()
    everywhere = lambda params, x: jnp.nan * jnp.sum(x @ params["w"])  # noqa: E731
    found, _ = estimates(everywhere, params, ROWS, 0.3, 50, replicates=2, credit=True)
    np.testing.assert_array_equal(found, 0)
