"""The reduction inside other transformations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.problems import replicate
from cases.spaces import reduced

import lejax

TAU = 0.3
X = jax.random.normal(jax.random.key(0), (3, 8))
PARAMS = {
    "b": jnp.array([0.1, -0.2]),
    "v": jnp.array([1.0, -0.5]),
    "w": 0.4 * jax.random.normal(jax.random.key(1), (8, 2)),
}
SAMPLERS = {
    "importance": lejax.importance(20, credit=False),
    "importance, credit": lejax.importance(20),
    "sgld": lejax.sgld(6, 0.1),
    "robbins_monro": lejax.robbins_monro(2, 4, 0.3),
    "pathwise": lejax.pathwise(6),
    "score_function": lejax.score_function(6),
}


def by_default(*names):
    """These samplers, and the others in the full suite."""
    return pytest.mark.parametrize(
        "name",
        [
            name if name in names else pytest.param(name, marks=pytest.mark.slow)
            for name in SAMPLERS
        ],
    )


def network(params, x):
    return jnp.mean(jnp.tanh(x @ params["w"] + params["b"]) @ params["v"])


def with_aux(params, x):
    return network(params, x), {"seen": x.sum()}


def transformation(sampler, tau=TAU, key=0, **options):
    heat = sampler.regularization == "heat"
    make = lejax.heat if heat else lejax.local_entropy
    smooth = make(sampler, tau, key=jax.random.key(key), **options)
    return optax.chain(smooth, optax.sgd(0.3))


def assert_close(a, b, **tolerances):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerances)


@by_default("importance", "sgld")
def test_scan_jit_aux_and_a_schedule(name):
    """New batches, a falling τ, and a state that never changes its structure."""
    batches = jax.random.normal(jax.random.key(2), (4, 3, 8))
    tx = transformation(
        SAMPLERS[name],
        tau=lejax.scoping(TAU, 0.1),
        has_aux={"seen": jnp.zeros(())},
    )

    def update(carry, x):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=with_aux, batch=x)
        return (optax.apply_updates(params, updates), state), state[0].info.aux["seen"]

    start = (PARAMS, tx.init(PARAMS))
    (params, _), seen = jax.jit(lambda c: jax.lax.scan(update, c, batches))(start)
    one_by_one, update = start, jax.jit(update)
    for x in batches:
        one_by_one, _ = update(one_by_one, x)
    assert_close(params, one_by_one[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen, batches.sum((1, 2)), rtol=1e-5)


@by_default("importance")
def test_vmap_over_keys_params_and_batches(name):
    step = lejax.step_fn(network, SAMPLERS[name], TAU)
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.tree.map(lambda p: jnp.stack([p, p + 0.1, p - 0.1]), PARAMS)
    batches = jnp.stack([X, X + 1, 2 * X])
    together = jax.jit(jax.vmap(step))(params, keys, batches)
    step = jax.jit(step)
    alone = [
        step(jax.tree.map(lambda p, i=i: p[i], params), keys[i], batches[i])
        for i in range(3)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    # The directions of a kernel are not unique: their signs may differ under vmap.
    assert jax.tree.map(jnp.shape, together) == jax.tree.map(jnp.shape, stacked)
    assert_close(together["b"], stacked["b"], rtol=1e-3, atol=1e-4)


def test_the_gradient_of_an_outer_function():
    """Of F_τ at fixed noise, by finite differences."""
    with jax.enable_x64(True):
        args = {
            "params": jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS),
            "tau": jnp.asarray(TAU, jnp.float64),
        }
        batch = X.astype(jnp.float64)

        @jax.jit
        @jax.value_and_grad
        def objective(args):
            _, _, info = lejax.importance(20).estimate(
                jax.random.key(0), (), value_fn=network, batch=batch, **args
            )
            return info.objective

        _, slopes = objective(args)
        for wrt, value in args.items():
            direction = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), value)
            slope = optax.tree.vdot(slopes[wrt], direction)
            ahead, behind = (
                objective({**args, wrt: optax.tree.add_scale(value, h, direction)})[0]
                for h in (1e-5, -1e-5)
            )
            np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6)


def test_the_gradient_with_respect_to_the_batch():
    """Of F_τ, on average that of the direct sampler; a row of zeros does no harm."""
    x = X.at[1].set(0)

    def slopes(seed, **options):
        def of_key(key):
            def objective(x):
                sampler = lejax.importance(20, **options)
                _, _, info = sampler.estimate(
                    key, (), PARAMS, value_fn=network, batch=x, tau=TAU
                )
                return info.objective

            return jax.grad(objective)(x)

        return np.asarray(replicate(of_key, 4000, seed), np.float64)

    reduced, direct = slopes(0), slopes(1, reduction=False)
    error = np.sqrt((reduced.var(0) + direct.var(0)) / 4000)
    assert (np.abs(reduced.mean(0) - direct.mean(0)) < 4.5 * error).all()


def test_float64():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
        x = X.astype(jnp.float64)

        @jax.jit
        def values(params, x):
            space = reduced(network, params, x, inner_batches=False)
            u = jax.tree.map(lambda leaf: leaf[0], space.noise(jax.random.key(0), 1))
            assert u["w"].dtype == jnp.float64
            moved = jax.tree.map(jnp.add, params, space.lift(u))
            return space.value_fn(u), network(moved, x)

        np.testing.assert_allclose(*values(params, x), rtol=1e-12)
        for sampler in SAMPLERS.values():
            step = lejax.step_fn(network, sampler, TAU)
            moved = jax.eval_shape(step, params, jax.random.key(0), x)
            assert moved["w"].dtype == jnp.float64


@pytest.mark.parametrize(
    ("name", "half"),
    [
        pytest.param(
            name,
            half,
            marks=()
            if (name, half) in (("importance", "bvw"), ("sgld", "w"))
            else pytest.mark.slow,
        )
        for name in SAMPLERS
        for half in ("bvw", "w")
    ],
)
def test_half_precision(name, half):
    """Drawn in float32, returned in the parameters' dtypes; casts as Flax's."""
    params = {
        key: leaf.astype(jnp.bfloat16) if key in half else leaf
        for key, leaf in PARAMS.items()
    }

    def value_fn(params, x):
        hidden = x @ params["w"].astype(x.dtype) + params["b"].astype(x.dtype)
        return jnp.mean(jnp.tanh(hidden) @ params["v"].astype(x.dtype))

    report = lejax.reduction_report(value_fn, params, X)
    assert report.leaves[2].reduced_shape == (3, 2)
    tx = transformation(SAMPLERS[name])

    @jax.jit
    def update(params):
        return tx.update(None, tx.init(params), params, value_fn=value_fn, batch=X)

    updates, state = update(params)
    for key, leaf in updates.items():
        assert leaf.dtype == params[key].dtype
        assert jnp.isfinite(leaf).all()
    assert state[0].info.nonfinite_fraction == 0


def test_a_bfloat16_product_is_reduced():
    """Without a cast: the product at x in bfloat16, its change in float32."""
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    space = reduced(network, params, X.astype(jnp.bfloat16), inner_batches=False)
    assert space.zeros["w"].shape == (3, 2)

    @jax.jit
    def values():
        u = jax.tree.map(lambda leaf: 0.3 * leaf[0], space.noise(jax.random.key(0), 1))
        moved = jax.tree.map(jnp.add, PARAMS, space.lift(u))
        return space.value_fn(u), network(moved, X)

    np.testing.assert_allclose(*values(), atol=0.02)


def test_a_mask_leaves_the_others_known():
    """A second layer is reduced where the first is not perturbed."""
    wide = {"first": PARAMS["w"], "second": jnp.ones((2, 5)) / 3}

    def value_fn(params, x):
        hidden = jnp.tanh(x @ params["first"])
        return jnp.mean(jnp.sin(hidden[:1] @ params["second"]))

    def selected(params):
        return value_fn({**wide, **params}, X)

    (leaf,) = lejax.reduction_report(selected, {"second": wide["second"]}).leaves
    assert leaf.reduced_shape == (1, 5)
    mask = {"first": False, "second": True}
    tx = transformation(lejax.importance(20), mask=mask)

    @jax.jit
    def update(params):
        updates, _ = tx.update(
            None, tx.init(params), params, value_fn=value_fn, batch=X
        )
        return updates

    updates = update(wide)
    np.testing.assert_array_equal(updates["first"], 0)
    assert (jnp.abs(updates["second"]).max(0) > 0).all()


def test_a_batch_of_more_than_arrays():
    def value_fn(params, batch):
        assert batch["name"] == "train"
        return network(params, batch["x"]) * batch["scale"]

    batch = {"x": X, "scale": 2.0, "name": "train"}
    space = reduced(value_fn, PARAMS, batch, inner_batches=False)
    assert space.zeros["w"].shape == (3, 2)
    np.testing.assert_allclose(
        space.value_fn(space.zeros), 2 * network(PARAMS, X), rtol=1e-5
    )


def test_dropout_keys_among_inner_batches():
    """Typed keys travel with their batches, and are spent once for all samples."""

    def value_fn(params, batch):
        key, x = batch
        return network(params, jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0))

    batches = jax.random.split(jax.random.key(3), 2), jnp.stack([X[:2], X[1:]])
    space = reduced(value_fn, PARAMS, batches, inner_batches=True)
    assert space.zeros["w"].shape == (4, 2)
    ours, theirs = jax.jit(space.value_fn), jax.jit(value_fn)
    for j in range(3):
        turn = jax.tree.map(lambda leaf, j=j: leaf[j % 2], batches)
        np.testing.assert_allclose(
            ours(space.zeros, j), theirs(PARAMS, turn), rtol=1e-5
        )


def test_turns_are_prepared_as_the_loss_would():
    """Keys of the `rbg` generator draw other numbers under vmap; a callback may refuse
    it."""

    def value_fn(params, batch):
        key, x = batch
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return network(params, jax.pure_callback(lambda x: 2 * x, shape, x))

    keys = jax.random.split(jax.random.key(3, impl="rbg"), 2)
    batches = keys, jnp.stack([X[:2], X[1:]])
    space = reduced(value_fn, PARAMS, batches, inner_batches=True)
    assert space.zeros["w"].shape == (4, 2)
    ours, theirs = jax.jit(space.value_fn), jax.jit(value_fn)
    for j in range(2):
        turn = jax.tree.map(lambda leaf, j=j: leaf[j], batches)
        np.testing.assert_allclose(
            ours(space.zeros, j), theirs(PARAMS, turn), rtol=1e-5
        )


def test_one_trace_serves_all_updates():
    """Reading the loss traces it a few times, and no more when values change."""
    traces = []

    def value_fn(params, x):
        traces.append(1)
        return network(params, x)

    step = jax.jit(lejax.step_fn(value_fn, lejax.importance(20), TAU))
    step(PARAMS, jax.random.key(0), X)
    once = len(traces)
    assert once <= 3
    step(PARAMS, jax.random.key(1), X + 1)
    assert len(traces) == once
