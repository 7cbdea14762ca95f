"""What the optax transformations add to others: masks, aux, schedules, states."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.registry import (
    BATCH,
    BY_DEFAULT,
    SMOOTHINGS,
    every_smoothing,
    every_transformation,
    loss,
    params,
    signature,
    transformation,
)

import lejax


@every_transformation
def test_a_restored_state_goes_on_bit_for_bit(name):
    tx = transformation(name)
    update = jax.jit(lambda p, s: tx.update(None, s, p, value_fn=loss, batch=BATCH))
    state = tx.init(params())
    for _ in range(2):
        _, state = update(params(), state)
    leaves, structure = jax.tree.flatten(state)
    keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    stored = [
        np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        for leaf, is_key in zip(leaves, keys, strict=True)
    ]
    restored = structure.unflatten(
        jax.random.wrap_key_data(leaf) if is_key else jnp.asarray(leaf)
        for leaf, is_key in zip(stored, keys, strict=True)
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        update(params(), restored)[0],
        update(params(), state)[0],
    )
    # and the draws of two steps differ
    first = update(params(), tx.init(params()))[0]
    assert (first["w"] != update(params(), state)[0]["w"]).any()


def first(tx, value_fn=loss, batch=BATCH):
    """The first update and the state after it, by one program, from the parameters."""

    @jax.jit
    def update(updates, params, batch):
        return tx.update(
            updates, tx.init(params), params, value_fn=value_fn, batch=batch
        )

    return lambda params, updates=None: update(updates, params, batch)


def _masks():
    """By default a tree for one, and a function for others."""
    for name, as_function in itertools.product(SMOOTHINGS, (True, False)):
        by_default = name in BY_DEFAULT and as_function == (name != "importance")
        yield pytest.param(
            name, as_function, marks=[] if by_default else pytest.mark.slow
        )


@pytest.mark.parametrize(("name", "as_function"), list(_masks()))
def test_mask_perturbs_these_leaves_and_passes_the_others_on(name, as_function):
    """The masked update is that of the selected leaves alone; b keeps its gradient."""
    mixed = {**params(), "count": jnp.array(3), "rng": jax.random.key(0)}
    mask = {"w": True, "b": False, "count": False, "rng": False}
    tx = transformation(name, mask=(lambda p: mask) if as_function else mask)
    incoming = {
        "w": jnp.full((2, 2), jnp.nan),
        "b": jnp.array([5.0, 6.0]),
        "count": jnp.array(0),
        "rng": jnp.zeros(()),
    }
    updates, new_state = first(tx)(mixed, incoming)
    assert signature(new_state) == signature(jax.jit(tx.init)(mixed))
    np.testing.assert_array_equal(updates["b"], incoming["b"])

    def of_selected(p, batch):
        return loss({**params(), **p}, batch)

    expected, _ = first(transformation(name), of_selected)({"w": mixed["w"]})
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "score_function",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in SMOOTHINGS
            if name != "score_function"
        ),
    ],
)
def test_without_incoming_updates_the_leaves_beside_a_mask_get_zeros(name):
    updates, _ = first(transformation(name, mask={"w": True, "b": False}))(params())
    np.testing.assert_array_equal(updates["b"], 0)
    assert (updates["w"] != 0).any()


def test_back_propagated_and_sampled_gradients_share_a_chain():
    tx = optax.chain(
        transformation("importance", mask={"w": True, "b": False}), optax.sgd(0.1)
    )

    def update(carry, _):
        p, state = carry
        grads = jax.grad(loss)(p, BATCH)
        updates, state = tx.update(grads, state, p, value_fn=loss, batch=BATCH)
        return (optax.apply_updates(p, updates), state), None

    @jax.jit
    def losses(p):
        (after, _), _ = jax.lax.scan(update, (p, tx.init(p)), length=100)
        return loss(after, BATCH), loss(p, BATCH)

    after, before = losses(params())
    assert after < 0.2 * before


@every_smoothing
def test_aux_is_that_of_the_centre(name):
    def with_aux(params, batch):
        return loss(params, batch), {"norm": jnp.sum(params["b"] ** 2)}

    like = {"norm": jax.ShapeDtypeStruct((), jnp.float32)}

    # One program for all, so that rounding is the same.
    @jax.jit
    def all_of_them(params):
        plain = first(transformation(name))(params)
        found = [
            first(transformation(name, has_aux=has_aux), with_aux)(params)
            for has_aux in (True, like)
        ]
        return plain, found

    (expected, after), found = all_of_them(params())
    for updates, new in found:
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
        np.testing.assert_allclose(new.info.aux["norm"], 0.05, rtol=1e-5)
        assert new.info.num_evaluations == after.info.num_evaluations + 1
    tx = transformation(name, has_aux=like)
    assert signature(new) == signature(jax.jit(tx.init)(params()))


def test_tau_and_learning_rate_by_one_schedule():
    """Scoping: τ(k) is taken at the number of updates before, k = 0 first."""
    tau = lejax.scoping(0.5, 0.2)
    sampler, key, f = lejax.importance(50), jax.random.key(0), lambda x: jnp.sum(x**2)
    tx = optax.chain(lejax.local_entropy(sampler, tau, key=key), optax.sgd(tau))
    x = y = jnp.array([1.0, -2.0])
    state = tx.init(x)

    @jax.jit
    def update(x, state):
        updates, state = tx.update(None, state, x, value_fn=f)
        return optax.apply_updates(x, updates), state

    @jax.jit
    def step(y, tau, key):
        return lejax.step_fn(f, sampler, tau)(y, key)

    for k in range(3):
        x, state = update(x, state)
        y = step(y, 0.5 / 1.2**k, jax.random.fold_in(key, k))
        np.testing.assert_allclose(x, y, rtol=1e-5)


@every_smoothing
def test_a_dropout_key_is_common_to_all_samples(name):
    """It is a part of the batch, so an update is that of one thinned network."""

    def keep(key):
        return jax.random.bernoulli(key, 0.5, (3, 2))

    def thinned(params, batch, kept):
        return jnp.mean(jnp.where(kept, batch @ params["w"] + params["b"], 0) ** 2)

    key, tx = jax.random.key(5), transformation(name)

    def by_key(p, batch):
        return thinned(p, batch[0], keep(batch[1]))

    found, _ = first(tx, by_key, (BATCH, key))(params())
    expected, _ = first(tx, lambda p, batch: thinned(p, batch, keep(key)))(params())
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )


def test_loss_and_aux_cost_one_evaluation():
    """What `num_evaluations` says is how often the loss was evaluated."""
    calls = []

    def host_loss(x):
        calls.append(x)
        return np.sum(np.asarray(x) ** 2)

    def value_fn(x):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        value = jax.pure_callback(host_loss, shape, x, vmap_method="sequential")
        return value, {"loss": value}

    tx = lejax.local_entropy(
        lejax.importance(20), 0.1, key=jax.random.key(0), has_aux=True
    )
    x = jnp.array([1.0, 2.0])
    update = jax.jit(lambda state: tx.update(None, state, x, value_fn=value_fn)[1])
    info = jax.block_until_ready(update(tx.init(x))).info
    assert len(calls) == info.num_evaluations == 21
    assert info.aux["loss"] == 5
