"""What every optax transformation does, in every place where people put one."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import (
    BATCH,
    SMOOTHINGS,
    TRANSFORMATIONS,
    every_smoothing,
    every_transformation,
    loss,
    params,
    signature,
    transformation,
)

import lejax

pytestmark = pytest.mark.compiles

GIVEN = {"value_fn": loss, "batch": BATCH}
# Pure functions of (params, key), and what is said of a loss.
PURE = {
    lejax.step_fn: lambda p, key: lejax.step_fn(loss, lejax.importance(20), 0.1)(
        p, key, BATCH
    ),
    lejax.value_and_grad: lambda p, key: lejax.value_and_grad(
        loss, lejax.pathwise(4), 0.1
    )(p, key, BATCH)[1],
    lejax.reduction_report: lambda p, key: jax.tree.map(
        lambda leaf: leaf * lejax.reduction_report(loss, p, BATCH).reduced_size, p
    ),
}


def zeros():
    """What wrappers need that map over the incoming updates."""
    return jax.tree.map(jnp.zeros_like, params())


def assert_close(one, other, rtol=1e-4, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other
    )


def assert_differ(one, other):
    """By more than rounding."""
    assert not np.allclose(one, other, rtol=1e-3)


@functools.cache
def alone(name, updates=2):
    """The first updates of a transformation by itself, at the same parameters."""
    tx = transformation(name)
    step = jax.jit(lambda state: tx.update(zeros(), state, params(), **GIVEN))
    state, found = tx.init(params()), []
    for _ in range(updates):
        update, state = step(state)
        found.append(update)
    return found


def test_every_public_factory_is_registered():
    public = {
        value
        for name, value in vars(lejax).items()
        if name[0].islower() and callable(value)
    }
    used = set().union(*(entry.uses for entry in TRANSFORMATIONS.values()))
    assert public == used | PURE.keys()


@every_transformation
@pytest.mark.parametrize("x64", [False, True])
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


WRAPPERS = {
    "named_chain": lambda tx: optax.named_chain(("lejax", tx), ("no", optax.scale(1))),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.transforms.conditionally_transform(
        tx, lambda step: step < 5
    ),
}


@every_transformation
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(name, wrapper):
    tx = WRAPPERS[wrapper](transformation(name))
    updates = None if wrapper == "named_chain" else zeros()
    update = jax.jit(lambda state: tx.update(updates, state, params(), **GIVEN))
    state = tx.init(params())
    for expected in alone(name):
        found, new = update(state)
        assert signature(new) == signature(state)
        assert_close(found, expected)
        state = new
    assert optax.tree.get(state, "info").num_evaluations > 0


@every_transformation
@pytest.mark.standard
def test_flatten(name):
    """Behind it, as always; around it, where the loss takes the flat vector."""
    flat, unflatten = jax.flatten_util.ravel_pytree(params())
    behind = optax.chain(transformation(name), optax.flatten(optax.adam(1e-3)))
    updates, _ = jax.jit(
        lambda state: behind.update(zeros(), state, params(), **GIVEN)
    )(behind.init(params()))
    first = jax.tree.map(lambda leaf: -1e-3 * jnp.sign(leaf), alone(name)[0])
    assert_close(updates, first, rtol=1e-3)

    around = optax.flatten(transformation(name))
    with pytest.raises(TypeError) as raised:
        around.update(zeros(), around.init(params()), params(), **GIVEN)
    assert "optax.flatten" in "".join(raised.value.__notes__)
    own = transformation(name)

    def flat_loss(vector, batch):
        return loss(unflatten(vector), batch)

    given = {"value_fn": flat_loss, "batch": BATCH}
    found, _ = around.update(zeros(), around.init(params()), params(), **given)
    expected, _ = own.update(None, own.init(flat), flat, **given)
    assert_close(jax.flatten_util.ravel_pytree(found)[0], expected)


@every_transformation
@pytest.mark.standard
def test_gradients_are_accumulated_behind_the_sampler(name):
    """MultiSteps behind it averages k estimates, and evaluates nothing in vain."""
    multi = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    tx = optax.chain(transformation(name), multi)
    update = jax.jit(lambda state: tx.update(None, state, params(), **GIVEN))
    waiting, state = update(tx.init(params()))
    assert_close(waiting, zeros())
    updates, _ = update(state)
    mean = jax.tree.map(lambda a, b: -0.1 * (a + b) / 2, *alone(name))
    assert_close(updates, mean)


@every_transformation
@pytest.mark.standard
def test_multi_steps_around(name):
    """It works as well; of k estimates it keeps the last alone."""
    tx = optax.MultiSteps(transformation(name), 2)
    update = jax.jit(lambda state: tx.update(zeros(), state, params(), **GIVEN))
    waiting, state = update(tx.init(params()))
    assert_close(waiting, zeros())
    updates, state = update(state)
    assert_close(updates, alone(name)[0])
    assert optax.tree.get(state.inner_opt_state, "step") == 1


RATES = {
    "sgld": lambda rate: lejax.sgld(5, rate),
    "robbins_monro": lambda rate: lejax.robbins_monro(3, 4, rate),
}


@every_smoothing
@pytest.mark.standard
def test_injected_hyperparameters_change_without_a_new_trace(name):
    """τ, β, the step size of the sampler, and the rate behind; and they count."""
    values = {"tau": 0.1, "learning_rate": 1.0}
    if lejax.local_entropy in SMOOTHINGS[name].uses:
        values["beta"] = 1.0
    if name in RATES:
        values["rate"] = 0.01

    def make(learning_rate, rate=None, **options):
        key = jax.random.key(7)
        if rate is None:
            first = SMOOTHINGS[name].make(key=key, **options)
        else:
            (regularization,) = SMOOTHINGS[name].uses & {
                lejax.local_entropy,
                lejax.heat,
            }
            first = regularization(RATES[name](rate), key=key, **options)
        return optax.chain(first, optax.sgd(learning_rate))

    def build(tau, learning_rate, beta=None, rate=None):
        options = {} if beta is None else {"beta": beta}
        return make(learning_rate, rate, tau=tau, **options)

    injected = optax.inject_hyperparams(build)(**values)
    update = jax.jit(lambda s: injected.update(None, s, params(), **GIVEN))
    state = injected.init(params())
    before, _ = update(state)
    for hyperparameter in values:
        changed = {**values, hyperparameter: 2 * values[hyperparameter]}
        old = optax.tree.get(state, hyperparameter)
        new = optax.tree.set(state, **{hyperparameter: 2 * old})
        found, _ = update(new)
        tx = build(**changed)
        expected, _ = tx.update(zeros(), tx.init(params()), params(), **GIVEN)
        assert_close(found, expected, rtol=1e-3)
        assert_differ(found["w"], before["w"])
    assert update._cache_size() == 1


@pytest.mark.standard
def test_injected_hyperparameters_of_the_factories_themselves():
    """The typed key is an argument like any other; numbers that shape it are static."""
    key = jax.random.key(7)
    made = {
        "tau": optax.inject_hyperparams(lejax.local_entropy)(
            lejax.importance(20), tau=0.1, key=key
        ),
        "averaging": optax.inject_hyperparams(
            lejax.entropy_sgd, static_args="num_steps"
        )(0.5, 0.1, key=key, num_steps=4, averaging=0.3, inner_batches=False),
    }
    for hyperparameter, tx in made.items():
        update = jax.jit(lambda s, tx=tx: tx.update(None, s, params(), **GIVEN))
        state = tx.init(params())
        before, _ = update(state)
        old = optax.tree.get(state, hyperparameter)
        found, _ = update(optax.tree.set(state, **{hyperparameter: 2 * old}))
        assert_differ(found["w"], before["w"])
        assert update._cache_size() == 1


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


@contextlib.contextmanager
def set_to(option, value):
    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        yield
    finally:
        jax.config.update(option, before)


@every_transformation
@pytest.mark.parametrize(
    ("option", "jit"),
    [
        ("jax_debug_key_reuse", True),
        ("jax_debug_nans", True),
        ("jax_debug_nans", False),  # every operation's result is looked at
        ("jax_debug_infs", True),
        ("jax_enable_checks", True),
    ],
)
def test_debugging(name, option, jit):
    """No key is consumed twice, nothing is NaN that a user would look for."""
    if (name, option) == ("parallel", "jax_debug_key_reuse"):
        pytest.skip("JAX takes what shard_map does to a key in a scan for a use of it")
    expected = alone(name)[0]
    with set_to(option, True):
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
    expected = [call(params(), key) for key in keys]
    assert_close(jax.jit(call)(params(), keys[0]), expected[0])
    mapped = jax.jit(jax.vmap(call, (None, 0)))(params(), keys)
    assert_close(jax.tree.map(lambda leaf: leaf[1], mapped), expected[1])
    _, scanned = jax.lax.scan(lambda p, key: (p, call(p, key)), params(), keys)
    assert_close(jax.tree.map(lambda leaf: leaf[1], scanned), expected[1])
    with set_to("jax_enable_checks", True):
        checked = jax.jit(lambda p, key: call(p, key))(params(), jax.random.key(0))
    assert signature(checked) == signature(params())
