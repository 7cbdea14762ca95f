"""What first users do: leaves that are no arrays, masks, aux, messages; by factory."""

from __future__ import annotations

import dataclasses
import pickle
import warnings

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.first_steps import IMPORTANCE, KEY, PATHWISE, X, bowl, first, smooth
from cases.registry import SMOOTHINGS, TRANSFORMATIONS, every_transformation
from jax.experimental.ode import odeint

import lejax

# Leaves that a mask leaves out, of all kinds.
BESIDE = {
    "function": jnp.tanh,
    "string": "relu",
    "key": jax.random.key(3),
    "integer": jnp.arange(3),
    "number": 3,
    "empty": jnp.zeros((0, 2)),
    "numpy": np.ones(2, np.int8),
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("name", sorted(SMOOTHINGS.keys() | {"gaussian, full"}))
def test_leaves_that_a_mask_leaves_out(name, kind):
    """They have no part in an update, whatever they are; None is their update."""
    rows = jax.random.normal(jax.random.key(1), (6, 3))
    params = {"w": jnp.ones((3, 2)), "other": BESIDE[kind]}
    mask = {"w": True, "other": False}

    def loss(params, batch):
        return jnp.mean((batch @ params["w"]) ** 2)

    tx = TRANSFORMATIONS[name].make(0.1, key=KEY, mask=mask)
    given = {"value_fn": loss, "batch": rows}
    updates, _ = jax.eval_shape(
        lambda: tx.update(None, tx.init(params), params, **given)
    )
    assert updates["w"].shape == (3, 2)
    assert (updates["other"] is None) == (kind in ("function", "string"))
    alone = {"w": params["w"]}
    tx = TRANSFORMATIONS[name].make(0.1, key=KEY)
    same = jax.eval_shape(lambda: tx.update(None, tx.init(alone), alone, **given))[0]
    assert same["w"].shape == updates["w"].shape


def test_an_equinox_module_as_it_is():
    """Its functions and numbers are left out by a mask of booleans, a module too."""
    model = eqx.nn.MLP(3, 1, 4, 1, key=KEY)
    mask = jax.tree.map(eqx.is_inexact_array, model)
    assert callable(mask)

    def loss(model, rows):
        return jnp.mean(jax.vmap(model)(rows) ** 2)

    rows = jnp.ones((5, 3))
    updates, _ = first(smooth(mask=mask), loss, model, batch=rows)
    moved = eqx.apply_updates(model, updates)
    assert loss(moved, rows) != loss(model, rows)
    assert moved.activation is model.activation
    with pytest.raises(ValueError, match=r"params\.activation is .* no array"):
        first(smooth(), loss, model, batch=rows)


@pytest.mark.parametrize(
    "mask", [{"a": "yes", "b": False}, {"a": 1.0, "b": False}, "a", [True]]
)
def test_masks_of_something_else(mask):
    with pytest.raises(ValueError, match=r"mask.* must be"):
        first(smooth(mask=mask), lambda p: bowl(p["a"]), {"a": X, "b": X})


def test_a_mask_that_is_a_function_or_a_prefix():
    params = {"a": X, "b": {"c": X}}

    def loss(p):
        return bowl(p["a"]) + bowl(p["b"]["c"])

    masks = [{"a": True, "b": False}, lambda p: {"a": True, "b": False}]
    for mask in [*masks, {"a": np.bool_(True), "b": jnp.array(False)}]:
        updates, _ = first(smooth(mask=mask), loss, params)
        assert (updates["a"] != 0).all()
        assert (updates["b"]["c"] == 0).all()


def test_aux_of_python_numbers():
    """An example of it, and the aux: of strong types, so that a scan carries it."""
    tx = lejax.heat(PATHWISE, 0.1, key=KEY, has_aux={"n": 3, "loss": 0.0})

    def update(state, _):
        found = tx.update(
            None, state, X, value_fn=lambda x: (bowl(x), {"n": 3, "loss": bowl(x)})
        )
        return found[1], None

    state, _ = jax.lax.scan(update, tx.init(X), length=2)
    assert state.info.aux["n"] == 3
    assert not state.info.aux["n"].weak_type


def test_times_made_inside_of_the_loss():
    """`odeint` on times of its own, under a reduction."""
    rows = jnp.ones((5, 3))

    def loss(w, rows):
        path = odeint(lambda y, t: -y * w[0], jnp.ones(()), jnp.linspace(0.0, 1.0, 4))
        return jnp.mean((rows @ w) ** 2) + path[-1]

    tx = lejax.heat(PATHWISE, 0.1, key=KEY)
    eager, _ = first(tx, loss, batch=rows)
    traced, _ = jax.jit(lambda: first(tx, loss, batch=rows))()
    np.testing.assert_allclose(traced, eager, rtol=1e-5)


@every_transformation
def test_a_donated_state_leaves_the_key(name):
    key = jax.random.key(5)
    tx = TRANSFORMATIONS[name].make(0.1, key=key)
    state = tx.init({"w": X})
    held = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == key.dtype]
    assert held
    assert all(leaf is not key for leaf in held)
    jax.jit(lambda state: jax.tree.map(lambda x: x, state), donate_argnums=0)(state)
    jax.random.key_data(key).block_until_ready()


def test_a_schedule_of_beta():
    """As a number at every step, in a chain and in `minimize`."""
    schedule = optax.linear_schedule(0.5, 2.0, 3)
    tx = smooth(beta=schedule)
    state = tx.init(X)
    for step in range(4):
        grads, state = tx.update(None, state, X, value_fn=bowl)
        assert state.info.beta_used == schedule(step)
        alone = smooth(beta=float(schedule(step)))
        before = alone.init(X)._replace(step=jnp.asarray(step))
        expected, _ = alone.update(None, before, X, value_fn=bowl)
        np.testing.assert_allclose(grads, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"beta\(0\) must be a positive"):
        smooth(beta=optax.linear_schedule(0.0, 1.0, 3))
    result = lejax.minimize(
        bowl, X, tau=0.1, beta=schedule, key=KEY, num_updates=30, block_size=7
    )
    assert result.objective < bowl(X) / 10


def test_two_samplers_in_a_chain():
    chain = optax.chain(lejax.heat(PATHWISE, 0.1, key=KEY), smooth())
    for run in (lambda: first(chain), jax.jit(lambda: first(chain)[0])):
        with pytest.raises(ValueError, match="second replaces what the first"):
            run()
    # Of masks without a leaf in common it is what they are for.
    params = {"a": X, "b": X}
    chain = optax.chain(
        lejax.heat(PATHWISE, 0.1, key=KEY, mask={"a": True, "b": False}),
        smooth(mask={"a": False, "b": True}),
        optax.sgd(0.1),
    )
    updates, _ = first(chain, lambda p: bowl(p["a"]) + bowl(p["b"]), params)
    assert all((leaf != 0).all() for leaf in updates.values())


@pytest.mark.parametrize(
    "before", [optax.add_decayed_weights(0.1), optax.sgd(0.1), optax.clip(1.0)]
)
def test_what_comes_before_is_lost(before):
    chain = optax.chain(before, smooth(), optax.sgd(0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first(chain, updates=X)
    (warning,) = caught  # one for one fault
    assert "before it in the chain have no effect" in str(warning.message)


def test_gradients_that_are_passed_are_lost():
    with pytest.warns(UserWarning, match="these are not zero; pass None, as gradients"):
        first(smooth(), updates=X)


def test_gradients_of_all_leaves_beside_a_mask():
    """Those of the leaves that it leaves out are kept, and nothing is said."""
    params = {"a": X, "b": X}
    tx = smooth(mask={"a": True, "b": False})
    grads = jax.grad(lambda p: bowl(p["a"]) + bowl(p["b"]))(params)
    updates, _ = first(tx, lambda p: bowl(p["a"]), params, grads)
    np.testing.assert_array_equal(updates["b"], grads["b"])
    assert (updates["a"] != grads["a"]).all()


def test_states_by_flax():
    """Typed keys as their numbers, and back."""
    state = smooth().init(X)

    def is_key(leaf):
        return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    raw = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)
    read = flax.serialization.from_bytes(raw, flax.serialization.to_bytes(raw))
    again = jax.tree.map(
        lambda x, like: jax.random.wrap_key_data(x) if is_key(like) else x, read, state
    )
    assert again.key == state.key
    jax.tree.map(np.testing.assert_array_equal, again.info, state.info)


@every_transformation
def test_a_state_is_pickled(name):
    """Its arrays, keys as their numbers: those of a restored run are the same."""
    tx = TRANSFORMATIONS[name].make(0.1, key=KEY)
    state = tx.init({"w": X})
    leaves, structure = jax.tree.flatten(state)
    numbers = [
        np.asarray(jax.random.key_data(leaf) if leaf.dtype == KEY.dtype else leaf)
        for leaf in leaves
    ]
    assert len(pickle.loads(pickle.dumps(numbers))) == structure.num_leaves


@pytest.mark.parametrize(
    "sampler",
    [
        lejax.importance(10, beta_share=0.5),
        lejax.sgld(5, 0.1, num_chains=2),
        lejax.robbins_monro(3, 4, 0.1),
        lejax.score_function(10),
    ],
)
def test_a_sampler_is_pickled(sampler):
    again = pickle.loads(pickle.dumps(sampler))
    assert again == sampler
    assert hash(again) == hash(sampler)


def test_a_result_is_pickled():
    result = lejax.minimize(bowl, X, tau=0.1, key=KEY, num_updates=3)
    again = pickle.loads(pickle.dumps(result))
    jax.tree.map(
        np.testing.assert_array_equal,
        *(dataclasses.astuple(found)[0] for found in (again, result)),
    ) if dataclasses.is_dataclass(result) else None
    np.testing.assert_array_equal(again.params, result.params)
    assert again.reason == result.reason


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_another_kind(impl):
    key = jax.random.key(1, impl=impl)
    for head in (
        lejax.local_entropy(IMPORTANCE, 0.1, key=key),
        lejax.gaussian(IMPORTANCE, 0.1, key=key, covariance="full"),
        lejax.local_entropy(lejax.sgld(4, 0.1), 0.1, key=key),
    ):
        updates, _ = first(head)
        assert jnp.isfinite(updates).all()
        assert (updates != 0).all()


def test_deviations_below_the_spacing_of_numbers():
    """Told where a run begins, and by the share of a Gaussian that is lost."""
    far = jnp.array([1.0, 1e6])
    message = r"params has numbers of 1e\+06, where float32 has steps of 0.12"
    gaussian = lejax.gaussian(IMPORTANCE, 1e-6, key=KEY)
    for init in (smooth(tau=1e-6).init, gaussian.init):
        with pytest.warns(UserWarning, match=message):
            init(far)
    with pytest.warns(UserWarning, match=message):
        lejax.minimize(bowl, far, tau=1e-6, key=KEY, num_updates=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smooth(tau=1.0).init(far)
        smooth(tau=1e-6).init(far.astype(jnp.bfloat16))
        jax.eval_shape(smooth(tau=1e-6).init, far)
    with pytest.warns(UserWarning, match="lost in rounding"):
        _, state = first(gaussian, params=far)
    assert state.bounded == 0.5
    _, state = first(gaussian)
    assert state.bounded == 0
