"""A sampler over all devices in one call; four of them in a process of its own."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from cases.devices import run_on_four_devices
from cases.members import BATCH, PARAMS, SAMPLERS, assert_same, f, network
from cases.registry import assert_close

import lejax
from experiments.common.collectives import collectives

AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
TAU = 0.3
SHARED = [
    "few samples",
    "signs",
    "centred",
    "no credit",
    "adapted",
    "heat, no credit",
    "score_function",
    "one chain",
    "three chains",
]


def trained(sampler, batch=BATCH, params=PARAMS):
    """Parameters and info after three updates of an ordinary, jitted chain."""
    head = lejax.heat if sampler.regularization == "heat" else lejax.local_entropy
    tx = optax.chain(head(sampler, TAU, key=jax.random.key(5)), optax.sgd(0.1))

    @jax.jit
    def update(params, state, batch):
        updates, state = tx.update(None, state, params, value_fn=network, batch=batch)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(3):
        params, state = update(params, state, batch)
    return params, state[0].info


def on_all_devices(names):
    """The same training, whatever the number of devices and of samples."""
    for name in names:
        sampler = lejax.parallel(SAMPLERS[name]())
        assert_same(trained(sampler), trained(SAMPLERS[name]()))


def of_rbg_keys():
    # The generator of `rbg` keys makes a chunk at a time: equal chunks, equal numbers.
    sampler, key = lejax.importance(64, chunk_size=8), jax.random.key(3, impl="rbg")
    whole = jax.jit(lejax.step_fn(network, sampler, TAU))
    shared = jax.jit(lejax.step_fn(network, lejax.parallel(sampler), TAU))
    assert_same(shared(PARAMS, key, BATCH), whole(PARAMS, key, BATCH))


def on_two_axes():
    """Draws along one axis of a mesh, the batch split along the other."""
    cases = (
        ("pairs", AUTO),
        ("centred", AUTO),
        ("robbins_monro", AUTO),
        ("pairs", EXPLICIT),
    )
    for name, types in cases:
        mesh = jax.make_mesh((2, 2), ("draws", "rows"), (types, types))
        sampler = lejax.parallel(
            SAMPLERS[name](), mesh, axis_name="draws", data_axis_name="rows"
        )
        batch = jax.device_put(BATCH, jax.NamedSharding(mesh, jax.P("rows")))
        assert_same(trained(sampler, batch), trained(SAMPLERS[name]()))
        if types == EXPLICIT:  # a whole batch is then split by the sampler
            assert_same(trained(sampler), trained(SAMPLERS[name]()))
        odd = jax.tree.map(lambda leaf: leaf[:1], BATCH)
        with pytest.raises(ValueError, match=r"batch has a leaf .* a multiple of"):
            trained(sampler, odd)


def of_many_rows():
    """A layer with more rows than inputs, the batch split, in chunks of draws."""
    mesh = jax.make_mesh((2, 2), ("draws", "rows"), (AUTO, AUTO))
    x = jax.random.normal(jax.random.key(0), (16, 4))
    params = {"w": jax.random.normal(jax.random.key(1), (4, 3)), "b": jnp.ones(3)}

    def loss(params, x):
        return jnp.mean(jnp.tanh(x @ params["w"] + params["b"]).sum(-1) ** 2)

    for sampler in (
        lejax.importance(40, chunk_size=4),
        lejax.score_function(40, chunk_size=2),
        lejax.pathwise(8),
    ):
        shared = lejax.parallel(sampler, mesh, axis_name="draws", data_axis_name="rows")
        found = [
            jax.jit(lejax.value_and_grad(loss, each, tau=TAU))(
                params, jax.random.key(2), x
            )[1]
            for each in (shared, sampler)
        ]
        assert_same(*found)


def with_a_covariance():
    """Learnt from the draws of all devices, and of a batch that is split."""
    mesh = jax.make_mesh((2, 2), ("draws", "rows"), (AUTO, AUTO))
    names = {"axis_name": "draws", "data_axis_name": "rows"}
    x = jax.random.normal(jax.random.key(0), (16, 4))
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}

    def loss(params, x):
        return jnp.mean(jnp.tanh(x @ params["w"] + params["b"]).sum(-1) ** 2)

    def learnt(sampler, covariance):
        tx = lejax.gaussian(
            sampler, TAU, key=jax.random.key(2), covariance=covariance, temperature=0.3
        )
        update = jax.jit(lambda s: tx.update(None, s, params, value_fn=loss, batch=x))
        updates, state = update(tx.init(params))
        updates, state = update(state)
        variances = state.covariance.variances(params)
        info = state.info
        return updates, variances, info.objective, info.squared_error

    for sampler in (
        lejax.importance(40, beta_share=0.3),
        lejax.importance(40, antithetic=False),
        lejax.pathwise(12),
    ):
        on_some = lejax.parallel(sampler, mesh, **names)
        for covariance in ("diagonal", "full"):
            expected = learnt(sampler, covariance)
            for shared in (lejax.parallel(sampler), on_some):
                found = learnt(shared, covariance)
                # Roots and their inverses magnify rounding.
                assert_close(found, expected, atol=1e-5)


def what_is_sent(count):
    """The J losses, with credit those of the examples, d numbers, and a few."""
    size = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    for num_samples in (64, 6400):
        sampler = lejax.parallel(
            lejax.importance(num_samples, chunk_size=8, reduction=False)
        )
        step = jax.jit(lejax.value_and_grad(network, sampler, TAU))
        program = step.lower(PARAMS, jax.random.key(0), BATCH).compile().as_text()
        found = collectives(program)
        assert {kind for kind, _, _ in found} == {"all-reduce"}
        numbers = sum(numbers for _, numbers, _ in found)
        assert len(found) <= 4
        most = 2 * size + 2 * 1.05 * num_samples + 10 * count + 8
        assert size + num_samples <= numbers <= most, (size, found)
        # None of them is repeated: they stand outside the loop over the chunks.
        loops = re.findall(r"body=%([\w.]+)", program)
        for body in loops:
            inside = program.split(f"%{body} (", 1)[1].split("\n}", 1)[0]
            assert "all-reduce" not in inside
    assert count == jax.device_count()


def split_parameters(monkeypatch):
    """Large leaves stay split, and so do their perturbations."""
    monkeypatch.setattr("lejax._internal.trees.POOLED_NUMBERS", 1000)
    monkeypatch.setattr("lejax._internal.blocks.LEAST_APART", 100)
    # As on an accelerator: all blocks side by side.
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    params = jnp.linspace(-1.0, 1.0, 64 * 32).reshape(64, 32)

    def loss(w):
        return jnp.mean(jnp.sin(3 * w) + w**2)

    sampler = lejax.importance(64, chunk_size=2, reduction=False)
    key = jax.random.key(2)
    whole = jax.jit(lejax.value_and_grad(loss, sampler, TAU))(params, key)
    mesh = jax.make_mesh((2, 2), ("samples", "model"), (AUTO, AUTO))
    for spec in (jax.P("model"), jax.P(None, "model")):
        split = jax.device_put(params, jax.NamedSharding(mesh, spec))
        step = jax.jit(lejax.value_and_grad(loss, lejax.parallel(sampler, mesh), TAU))
        compiled = step.lower(split, key).compile()
        found = collectives(compiled.as_text())
        assert {kind for kind, _, _ in found} == {"all-reduce"}
        assert sum(numbers for _, numbers, _ in found) <= params.size / 2 + 40 + 2 * 64
        (value, info), grads = compiled(split, key)
        assert_same(((value, info), grads), whole)
        assert grads.sharding.is_equivalent_to(split.sharding, grads.ndim)
    # Where the layout is a part of the type, that of the gradient is that of the leaf.
    mesh = jax.make_mesh((4,), ("model",), (EXPLICIT,))
    split = jax.device_put(params, jax.NamedSharding(mesh, jax.P("model")))
    with jax.set_mesh(mesh):
        result = jax.jit(lejax.value_and_grad(loss, sampler, TAU))(split, key)
    assert jax.typeof(result[1]).sharding.spec == jax.P("model", None)
    assert_same(result, whole)


def split_parameters_reduced(monkeypatch):
    """Likewise where some leaves are reduced, and the others large only together."""
    monkeypatch.setattr("lejax._internal.trees.POOLED_NUMBERS", 1000)
    monkeypatch.setattr("lejax._internal.blocks.LEAST_APART", 100)
    params = {"kernel": jnp.ones((64, 600)) / 8, "bias": jnp.zeros(600)}
    batch = jnp.sin(jnp.arange(4.0 * 64)).reshape(4, 64)

    def loss(params, batch):
        return jnp.mean(jnp.tanh(batch @ params["kernel"] + params["bias"]) ** 2)

    sampler, key = lejax.importance(16, chunk_size=2), jax.random.key(2)
    whole = jax.jit(lejax.value_and_grad(loss, sampler, TAU))(params, key, batch)
    mesh = jax.make_mesh((2, 2), ("samples", "model"), (AUTO, AUTO))
    split = jax.device_put(
        params,
        {
            "kernel": jax.NamedSharding(mesh, jax.P(None, "model")),
            "bias": jax.NamedSharding(mesh, jax.P("model")),
        },
    )
    step = jax.jit(lejax.value_and_grad(loss, lejax.parallel(sampler, mesh), TAU))
    compiled = step.lower(split, key, batch).compile()
    (value, info), grads = compiled(split, key, batch)
    assert_same(((value, info), grads), whole)
    for name, grad in grads.items():
        assert grad.sharding.is_equivalent_to(split[name].sharding, grad.ndim), name
    # Nothing with all 600 columns exists, and what is sent has half of them.
    program = compiled.as_text()
    assert not re.search(r"\[(\d+,)*600[,\]]", program)
    numbers = sum(numbers for _, numbers, _ in collectives(program))
    assert 5 * 600 / 2 <= numbers <= 5 * 600 / 2 + 40 + 4 * 16, numbers


def test_one_device():
    on_all_devices(["few samples"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:warm_start=True")
def test_one_device_and_chains():
    on_all_devices(["three chains"])
    of_rbg_keys()


@pytest.mark.slow
def test_four_devices():
    run_on_four_devices(__file__)


def test_no_such_axis():
    mesh = jax.make_mesh((1,), ("devices",), (AUTO,))
    with pytest.raises(ValueError, match=r"axis_name='samples' is not an axis"):
        lejax.parallel(lejax.importance(4), mesh)
    with pytest.raises(ValueError, match=r"data_axis_name='rows' is not an axis"):
        lejax.parallel(
            lejax.importance(4), mesh, axis_name="devices", data_axis_name="rows"
        )


def test_a_traced_loss():
    """A loss may close over traced values, and the batch be more than arrays."""
    sampler = lejax.parallel(lejax.importance(8))

    def step(shift, batch):
        loss = lambda x: f(x) + shift @ x  # noqa: E731
        of_batch = lambda x, batch: loss(x) + batch["more"]  # noqa: E731
        return (
            lejax.step_fn(loss, sampler, TAU)(jnp.ones(3), jax.random.key(0)),
            lejax.step_fn(of_batch, sampler, TAU)(
                jnp.ones(3), jax.random.key(0), batch | {"name": "text"}
            ),
        )

    a, b = jax.jit(step)(jnp.ones(3), {"more": jnp.array(1.0)})
    assert_same(a, b)


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    on_all_devices(SHARED)
    of_rbg_keys()
    on_two_axes()
    of_many_rows()
    with_a_covariance()
    jax.config.update("jax_disable_most_optimizations", False)
    what_is_sent(4)
    split_parameters_reduced(pytest.MonkeyPatch())
    split_parameters(pytest.MonkeyPatch())
