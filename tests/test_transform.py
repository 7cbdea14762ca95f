"""The optax transformations: chains, masks, aux, schedules, and unchanging states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lejax

pytestmark = pytest.mark.compiles

SAMPLERS = {
    "importance": (lejax.local_entropy, lejax.importance(20)),
    "sgld": (lejax.local_entropy, lejax.sgld(5, 0.01)),
    "sgld, cold": (lejax.local_entropy, lejax.sgld(5, 0.01, warm_start=False)),
    "robbins_monro": (lejax.heat, lejax.robbins_monro(3, 4, 0.5)),
    "pathwise": (lejax.heat, lejax.pathwise(4)),
    "score_function": (lejax.heat, lejax.score_function(20)),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def transformation(name, tau=0.1, **options):
    make, sampler = SAMPLERS[name]
    return make(sampler, tau, key=jax.random.key(7), **options)


def params():
    return {"w": jnp.array([[1.0, -1.0], [0.5, 2.0]]), "b": jnp.array([0.1, -0.2])}


def loss(params, batch):
    return jnp.mean((batch @ params["w"] + params["b"]) ** 2)


BATCH = jnp.array([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]])


def signature(tree):
    """Structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(leaf), leaf.dtype) for leaf in leaves]


@every_sampler
def test_state_never_changes_and_nothing_is_traced_twice(name):
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss(params, batch)

    tx = optax.chain(transformation(name), optax.sgd(1e-2, momentum=0.9))

    @jax.jit
    def update(params, state, batch):
        updates, state = tx.update(None, state, params, value_fn=counted, batch=batch)
        return optax.apply_updates(params, updates), state

    p, state = params(), tx.init(params())
    before = signature((p, state))
    p, state = update(p, state, BATCH)
    first = len(traces)
    for _ in range(3):
        p, state = update(p, state, BATCH)
        assert signature((p, state)) == before
    assert len(traces) == first
    assert state[0].step == 4

    def body(carry, _):
        return update(*carry, BATCH), None

    (_, scanned), _ = jax.lax.scan(body, (params(), tx.init(params())), length=4)
    for one, other in zip(
        jax.tree.leaves(scanned[0].info), jax.tree.leaves(state[0].info), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4)


@every_sampler
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


@every_sampler
def test_updates_are_replaced_and_extra_arguments_ignored(name):
    tx = transformation(name)
    state = tx.init(params())
    kept = dict(value_fn=loss, batch=BATCH)
    alone, _ = tx.update(None, state, params(), **kept)
    ones = jax.tree.map(jnp.ones_like, params())
    replaced, _ = tx.update(
        ones, state, params(), value=jnp.zeros(()), grad=ones, loss=3, **kept
    )
    jax.tree.map(np.testing.assert_array_equal, alone, replaced)
    named = optax.named_chain(("smooth", tx), ("sgd", optax.sgd(1.0)))
    updates, _ = named.update(None, named.init(params()), params(), **kept)
    jax.tree.map(lambda u, g: np.testing.assert_array_equal(u, -g), updates, alone)


@every_sampler
@pytest.mark.parametrize("as_function", [True, False])
def test_mask_perturbs_these_leaves_and_passes_the_others_on(name, as_function):
    """The masked update is that of the selected leaves alone; b keeps its gradient."""
    mask = {"w": True, "b": False}
    mixed = {**params(), "count": jnp.array(3), "rng": jax.random.key(0)}
    full_mask = {**mask, "count": False, "rng": False}
    tx = transformation(name, mask=(lambda p: full_mask) if as_function else full_mask)
    incoming = {
        "w": jnp.full((2, 2), jnp.nan),
        "b": jnp.array([5.0, 6.0]),
        "count": jnp.array(0),
        "rng": jnp.zeros(()),
    }
    state = tx.init(mixed)
    updates, new_state = tx.update(incoming, state, mixed, value_fn=loss, batch=BATCH)
    assert signature(new_state) == signature(state)
    np.testing.assert_array_equal(updates["b"], incoming["b"])

    alone = transformation(name)
    expected, _ = alone.update(
        None,
        alone.init({"w": mixed["w"]}),
        {"w": mixed["w"]},
        value_fn=lambda p, batch: loss({**params(), **p}, batch),
        batch=BATCH,
    )
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-5)
    # Without incoming updates the others get zeros.
    prefix = transformation(name, mask=mask)
    updates, _ = prefix.update(
        None, prefix.init(params()), params(), value_fn=loss, batch=BATCH
    )
    np.testing.assert_array_equal(updates["b"], 0)


def test_back_propagated_and_sampled_gradients_share_a_chain():
    tx = optax.chain(
        transformation("importance", mask={"w": True, "b": False}), optax.sgd(0.1)
    )

    def update(carry, _):
        p, state = carry
        grads = jax.grad(loss)(p, BATCH)
        updates, state = tx.update(grads, state, p, value_fn=loss, batch=BATCH)
        return (optax.apply_updates(p, updates), state), None

    (p, _), _ = jax.lax.scan(update, (params(), tx.init(params())), length=100)
    assert loss(p, BATCH) < 0.1 * loss(params(), BATCH)


@every_sampler
def test_aux_is_that_of_the_centre(name):
    def with_aux(params, batch):
        return loss(params, batch), {"norm": jnp.sum(params["b"] ** 2)}

    plain = transformation(name)
    expected, after = plain.update(
        None, plain.init(params()), params(), value_fn=loss, batch=BATCH
    )
    like = {"norm": jax.ShapeDtypeStruct((), jnp.float32)}
    for has_aux in (True, like):
        tx = transformation(name, has_aux=has_aux)
        state = tx.init(params())
        updates, new = tx.update(None, state, params(), value_fn=with_aux, batch=BATCH)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
        np.testing.assert_allclose(new.info.aux["norm"], 0.05, rtol=1e-5)
        assert new.info.num_evaluations == after.info.num_evaluations + 1
    assert signature(new) == signature(state)


def test_tau_and_learning_rate_by_one_schedule():
    """Scoping: τ(k) is taken at the number of updates before, k = 0 first."""
    tau = lejax.scoping(0.5, 0.2)
    sampler, key, f = lejax.importance(50), jax.random.key(0), lambda x: jnp.sum(x**2)
    tx = optax.chain(lejax.local_entropy(sampler, tau, key=key), optax.sgd(tau))
    x = y = jnp.array([1.0, -2.0])
    state = tx.init(x)
    for k in range(3):
        updates, state = tx.update(None, state, x, value_fn=f)
        x = optax.apply_updates(x, updates)
        step = lejax.step_fn(f, sampler, 0.5 / 1.2**k)
        y = step(y, jax.random.fold_in(key, k))
        np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.standard
def test_injected_hyperparameters_change_without_a_new_trace():
    make = optax.inject_hyperparams(lejax.local_entropy)
    key = jax.random.key(0)
    tx = make(lejax.importance(50), tau=0.1, beta=1.0, key=key)
    update = jax.jit(lambda s: tx.update(None, s, params(), value_fn=loss, batch=BATCH))
    state = tx.init(params())
    update(state)
    for name, value in {"tau": 0.4, "beta": 2.0}.items():
        state.hyperparams[name] = jnp.full_like(state.hyperparams[name], value)
    updates, _ = update(state)
    assert update._cache_size() == 1
    other = lejax.local_entropy(lejax.importance(50), 0.4, beta=2.0, key=key)
    expected, _ = other.update(
        None, other.init(params()), params(), value_fn=loss, batch=BATCH
    )
    jax.tree.map(
        lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-4), updates, expected
    )


def test_an_ensemble_by_vmap_over_keys():
    def first_update(key):
        tx = lejax.local_entropy(lejax.importance(20), 0.1, key=key)
        return tx.update(None, tx.init(params()), params(), value_fn=loss, batch=BATCH)[
            0
        ]

    keys = jax.random.split(jax.random.key(0), 3)
    updates = jax.vmap(first_update)(keys)
    assert updates["w"].shape == (3, 2, 2)
    np.testing.assert_allclose(
        updates["w"][1], first_update(keys[1])["w"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.standard
def test_gradients_are_accumulated_behind_the_sampler():
    """MultiSteps behind it averages k estimates, and evaluates nothing in vain."""
    multi = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    tx = optax.chain(transformation("importance"), multi)
    alone = transformation("importance")
    state, own = tx.init(params()), alone.init(params())
    grads = []
    for _ in range(2):
        kept = dict(value_fn=loss, batch=BATCH)
        updates, state = tx.update(None, state, params(), **kept)
        grad, own = alone.update(None, own, params(), **kept)
        grads.append(grad)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -0.1 * g, rtol=1e-4), updates, mean
    )


def test_no_key_is_consumed_twice():
    with jax.debug_key_reuse(True):
        for name in SAMPLERS:
            tx = transformation(name)
            update = jax.jit(
                lambda s, tx=tx: tx.update(
                    None, s, params(), value_fn=loss, batch=BATCH
                )
            )
            _, state = update(tx.init(params()))
            update(state)
