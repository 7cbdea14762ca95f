"""What every optax transformation does, in every place where people put one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from cases.registry import (
    BATCH,
    GIVEN,
    TRANSFORMATIONS,
    alone,
    assert_close,
    assert_differ,
    every_transformation,
    loss,
    params,
    signature,
    transformation,
    zeros,
)

import lejax


def certified(p, key):
    """The parameters, times the decrease that a step is sure to bring."""
    smoothed = lejax.value_and_grad(loss, lejax.importance(40), 0.1)
    (_, info), grads = smoothed(p, key, BATCH)
    found = lejax.certificate(info._replace(gradient=grads), grads)
    return jax.tree.map(lambda leaf: leaf * found.estimate.astype(leaf.dtype), p)


def minus_log_posterior(params, key):
    y = jax.random.normal(key, BATCH[1].shape)
    f = lejax.negative_log_posterior(
        lambda p: jnp.full(y.shape, sum(map(jnp.sum, jax.tree.leaves(p)))),
        lambda p: -sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)),
        y,
        0.5,
    )
    return jax.grad(f)(params)


# Pure functions of (params, key), and what is said of a loss.
PURE = {
    lejax.step_fn: lambda p, key: lejax.step_fn(loss, lejax.importance(20), 0.1)(
        p, key, BATCH
    ),
    lejax.value_and_grad: lambda p, key: lejax.value_and_grad(
        loss, lejax.pathwise(4), 0.1
    )(p, key, BATCH)[1],
    lejax.certificate: certified,
    lejax.negative_log_posterior: minus_log_posterior,
    lejax.beta_for_share: lambda p, key: jax.tree.map(
        lambda leaf: leaf * lejax.beta_for_share(jax.random.normal(key, 9), 0.5), p
    ),
    lejax.reduction_report: lambda p, key: jax.tree.map(
        lambda leaf: leaf * lejax.reduction_report(loss, p, BATCH).reduced_size, p
    ),
}
# With tests of their own.
WHOLE_RUNS = {lejax.minimize, lejax.ask_tell, lejax.search_rule, lejax.plot}


def test_every_public_factory_is_registered():
    public = {
        value
        for name, value in vars(lejax).items()
        if name[0].islower() and callable(value)
    }
    used = set().union(*(entry.uses for entry in TRANSFORMATIONS.values()))
    assert public == used | PURE.keys() | WHOLE_RUNS


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_every_transformation_makes_finite_updates(name):
    """Of all that are registered; what else they keep is tested of a few by default."""
    updates = alone(name)
    assert signature(updates[0]) == signature(params())
    for update in updates:
        assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(update))
    assert_differ(updates[0]["w"], updates[1]["w"])


@every_transformation
@pytest.mark.parametrize("x64", [pytest.param(False, marks=pytest.mark.slow), True])
def test_state_never_changes_and_nothing_is_traced_twice(name, x64):
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss(params, batch)

    with jax.enable_x64(x64):
        tx = optax.chain(transformation(name), optax.sgd(1e-2, momentum=0.9))

        @jax.jit
        def update(params, state, batch):
            updates, state = tx.update(
                None, state, params, value_fn=counted, batch=batch
            )
            return optax.apply_updates(params, updates), state

        p, state = params(), tx.init(params())
        before = signature((p, state))
        # What `parallel` returns lies on its mesh, which is another type of argument.
        for _ in range(2 if name == "parallel" else 1):
            p, state = update(p, state, BATCH)
        first = len(traces)
        for _ in range(3):
            p, state = update(p, state, BATCH)
            assert signature((p, state)) == before
        assert len(traces) == first
        assert optax.tree.get(state[0], "step") == (5 if name == "parallel" else 4)

        def body(carry, _):
            return update(*carry, BATCH), None

        start = params(), tx.init(params())
        (_, scanned), _ = jax.lax.scan(
            body, start, length=int(optax.tree.get(state[0], "step"))
        )
        assert_close(
            optax.tree.get(scanned, "info"), optax.tree.get(state, "info"), atol=0
        )


@every_transformation
@pytest.mark.filterwarnings("ignore:local_entropy, heat or gaussian replaces")
def test_updates_are_replaced_and_extra_arguments_ignored(name):
    tx = transformation(name)
    ones = jax.tree.map(jnp.ones_like, params())
    for updates in (None, ones):
        found, _ = jax.jit(
            lambda state, updates=updates: tx.update(
                updates, state, params(), value=jnp.zeros(()), loss=3, **GIVEN
            )
        )(tx.init(params()))
        assert_close(found, alone(name)[0])


@every_transformation
def test_an_ensemble_by_vmap_over_keys(name):
    def first_update(key):
        tx = TRANSFORMATIONS[name].make(0.1, key=key)
        return tx.update(zeros(), tx.init(params()), params(), **GIVEN)[0]

    keys = jnp.stack([jax.random.key(seed) for seed in (3, 7)])
    updates = jax.jit(jax.vmap(first_update))(keys)
    assert_close(jax.tree.map(lambda leaf: leaf[1], updates), alone(name)[0])
    assert_differ(*updates["w"])


@every_transformation
@pytest.mark.standard
def test_tree_get_and_set(name):
    tx = optax.chain(transformation(name), optax.adam(1e-3))
    state = tx.init(params())
    assert optax.tree.get(state, "info").num_evaluations == 0
    later = optax.tree.set(state, step=jnp.array(1, jnp.int32))
    assert optax.tree.get(later, "step") == 1
    update = jax.jit(lambda s: tx.update(zeros(), s, params(), **GIVEN)[1])
    info = optax.tree.get(update(state), "info")
    assert info.num_evaluations > 0
    # The step is folded into the key, so it alone changes the draws.
    first, second = (optax.tree.get(update(s), "mu")["w"] for s in (state, later))
    assert_differ(first, second)


@every_transformation
@pytest.mark.parametrize(
    ("option", "jit"),
    [
        ("debug_key_reuse", True),
        ("debug_nans", True),
        # Every operation's result is looked at.
        pytest.param("debug_nans", False, marks=pytest.mark.slow),
        ("debug_infs", True),
        ("enable_checks", True),
    ],
)
def test_debugging(name, option, jit):
    """No key is consumed twice, nothing is NaN that a user would look for."""
    if (name, option) == ("parallel", "debug_key_reuse"):
        pytest.skip("JAX takes what shard_map does to a key in a scan for a use of it")
    expected = alone(name)[0]
    with getattr(jax, option)(True):
        tx = transformation(name)

        def update(state):
            return tx.update(zeros(), state, params(), **GIVEN)

        update = jax.jit(update) if jit else update
        updates, state = update(tx.init(params()))
        assert_close(updates, expected)
        update(state)


@pytest.mark.parametrize("function", PURE, ids=lambda function: function.__name__)
def test_pure_functions(function):
    """Under jit, vmap over keys and scan, to the same numbers."""
    call = PURE[function]
    keys = jax.random.split(jax.random.key(0), 2)
    jitted = jax.jit(call)
    expected = [jitted(params(), key) for key in keys]
    mapped = jax.jit(jax.vmap(call, (None, 0)))(params(), keys)
    assert_close(jax.tree.map(lambda leaf: leaf[1], mapped), expected[1])
    with jax.enable_checks(True):
        _, scanned = jax.lax.scan(lambda p, key: (p, call(p, key)), params(), keys)
    assert_close(jax.tree.map(lambda leaf: leaf[1], scanned), expected[1])
    assert signature(expected[0]) == signature(params())


@pytest.mark.slow
@pytest.mark.parametrize("function", PURE, ids=lambda function: function.__name__)
def test_pure_functions_without_jit(function):
    call, key = PURE[function], jax.random.key(0)
    assert_close(call(params(), key), jax.jit(call)(params(), key))
