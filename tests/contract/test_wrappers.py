"""Around and behind a transformation: optax's wrappers, and numbers that change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from cases.registry import (
    BATCH,
    GIVEN,
    SMOOTHINGS,
    alone,
    assert_close,
    assert_differ,
    every_smoothing,
    every_transformation,
    loss,
    params,
    signature,
    transformation,
    zeros,
)

import lejax

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
    if name == "importance_by_example":  # it needs layers, and a vector has none
        with pytest.raises(ValueError, match="does not separate the examples"):
            around.update(zeros(), around.init(params()), params(), **given)
        return
    found, _ = jax.jit(lambda s: around.update(zeros(), s, params(), **given))(
        around.init(params())
    )
    expected, _ = jax.jit(lambda s: own.update(None, s, flat, **given))(own.init(flat))
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


# The step size of a sampler is another number that changes.
BY_RATE = {
    "sgld": lambda rate, **options: lejax.local_entropy(lejax.sgld(5, rate), **options),
    "robbins_monro": lambda rate, **options: lejax.heat(
        lejax.robbins_monro(3, 4, rate), **options
    ),
}


@every_smoothing
@pytest.mark.standard
def test_injected_hyperparameters_change_without_a_new_trace(name):
    """τ, β, the step size of the sampler, and the rate behind; and they count."""
    values = {"tau": 0.1, "learning_rate": 1.0}
    if lejax.local_entropy in SMOOTHINGS[name].uses:
        values["beta"] = 1.0
    if name in BY_RATE:
        values["rate"] = 0.01
    make = BY_RATE.get(name, SMOOTHINGS[name].make)

    def build(learning_rate, tau, beta=None, rate=None):
        given = {"tau": tau, "beta": beta, "rate": rate}
        options = {k: v for k, v in given.items() if v is not None}
        smooth = make(key=jax.random.key(7), **options)
        return optax.chain(smooth, optax.sgd(learning_rate))

    injected = optax.inject_hyperparams(build)(**values)
    update = jax.jit(lambda s: injected.update(None, s, params(), **GIVEN))
    state = injected.init(params())
    before, _ = update(state)
    for hyperparameter in values:
        changed = {**values, hyperparameter: 2 * values[hyperparameter]}
        old = optax.tree.get(state, hyperparameter)
        new = optax.tree.set(state, **{hyperparameter: 2 * old})
        found, _ = update(new)
        again = build(**changed)
        expected, _ = jax.jit(
            lambda s, tx=again: tx.update(zeros(), s, params(), **GIVEN)
        )(again.init(params()))
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
