"""Bad keys, parameters, losses and batches: an error that names what, and the mend."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lejax

KEY = jax.random.key(0)
X = jnp.ones(2)


def loss(x, batch=None):
    return jnp.sum(x**2)


def transformation(**options):
    defaults = dict(sampler=lejax.importance(4), tau=0.1, key=KEY)
    return lejax.local_entropy(**{**defaults, **options})


def update(params=X, value_fn=loss, batch=None, tx=None, init=None, **options):
    tx = transformation(**options) if tx is None else tx
    state = tx.init(X if init is None else init)
    return tx.update(None, state, params, value_fn=value_fn, batch=batch)


@pytest.mark.parametrize(
    "bad", [jnp.zeros(2, jnp.uint32), 0, None, np.zeros(2, np.uint32)]
)
def test_keys_are_typed(bad):
    for make in (
        lambda: transformation(key=bad),
        lambda: lejax.step_fn(loss, lejax.importance(4), 0.1)(X, bad),
    ):
        with pytest.raises(
            TypeError, match=r"key must be a typed key.*jax\.random\.key"
        ):
            make()
    with pytest.raises(ValueError, match=r"one key, got an array of keys.*jax\.vmap"):
        transformation(key=jax.random.split(KEY))


@pytest.mark.parametrize("leaf", [jnp.array([1, 2]), jax.random.key(0), True])
def test_leaves_that_cannot_be_perturbed(leaf):
    params = {"w": X, "deep": [leaf]}
    for call in (
        transformation().init,
        lambda params: lejax.step_fn(loss, lejax.sgld(4, 0.1), 0.1)(params, KEY),
        lambda params: lejax.importance(4).estimate(
            KEY, (), params, value_fn=loss, tau=0.1
        ),
    ):
        with pytest.raises(ValueError, match=r"params\['deep'\]\[0\] has dt.*mask="):
            call(params)


def test_params():
    with pytest.raises(ValueError, match="params is None; pass the current"):
        update(params=None)
    with pytest.raises(ValueError, match="params is None; pass the current"):
        update(params=None, mask=True)
    with pytest.raises(ValueError, match="at least one leaf"):
        transformation().init({})
    with pytest.raises(ValueError, match="a mask that selects one"):
        transformation(mask=False).init(X)


@pytest.mark.parametrize("mask", [None, {"w": True, "b": True}])
def test_masked_and_partition_are_pointed_to_mask(mask):
    params = {"w": X, "b": X}
    sampled = transformation(mask=mask)
    for wrapped in (
        optax.masked(sampled, {"w": True, "b": False}),
        optax.partition({"a": sampled, "z": optax.sgd(1.0)}, {"w": "a", "b": "z"}),
    ):
        message = r"params\['b'\] is an optax.MaskedNode.*mask="
        with pytest.raises(ValueError, match=message):
            wrapped.init(params)


def test_mask_of_another_structure():
    with pytest.raises(ValueError, match="mask must be a tree of booleans like params"):
        transformation(mask={"v": True}).init({"w": X})


def test_value_fn():
    tx = transformation()
    with pytest.raises(ValueError, match="value_fn is missing"):
        tx.update(None, tx.init(X), X)
    with pytest.raises(TypeError, match="value_fn must be a function"):
        update(value_fn=3.0)
    with pytest.raises(TypeError, match="value_fn must be a function"):
        lejax.step_fn(3.0, lejax.importance(4), 0.1)(X, KEY)
    with pytest.raises(TypeError, match=r"scalar loss, got .*shape=\(2,\).*mean"):
        update(value_fn=lambda x: x)
    with pytest.raises(TypeError, match="scalar loss"):
        update(value_fn=lambda x: {"loss": jnp.sum(x)})
    with pytest.raises(TypeError, match="must return a real loss"):
        update(value_fn=lambda x: jnp.sum(x).astype(jnp.complex64))


def test_aux():
    pair = lambda x: (jnp.sum(x), x)  # noqa: E731
    with pytest.raises(TypeError, match=r"a tuple of 2.*has_aux=True"):
        update(value_fn=pair)
    with pytest.raises(TypeError, match=r"must return a pair .* with has_aux"):
        update(value_fn=loss, has_aux=True)
    with pytest.raises(TypeError, match=r"must return a pair .* with has_aux"):
        lejax.value_and_grad(loss, lejax.importance(4), 0.1, has_aux=True)(X, KEY)


def test_a_loss_without_a_gradient():
    def count(x):
        return jnp.sum(x > 0)

    heat = lejax.heat(lejax.pathwise(4), 0.1, key=KEY)
    for tx in (heat, transformation(sampler=lejax.sgld(4, 0.1))):
        with pytest.raises(
            TypeError, match=r"int32, which has no gradient; use import"
        ):
            update(value_fn=count, tx=tx)
    update(value_fn=count)


def test_batches():
    with pytest.raises(TypeError, match=r"value_fn\(x\) cannot be called.*leave batch"):
        update(value_fn=lambda x: jnp.sum(x), batch=X)
    with pytest.raises(TypeError, match=r"value_fn\(x, y\) cannot.*pass batch="):
        update(value_fn=lambda x, y: jnp.sum(x * y))
    with pytest.raises(TypeError) as caught:
        update(value_fn=lambda x, y: jnp.sum(x * y), batch=jnp.ones(3))
    assert any("a batch of shapes (3,)" in note for note in caught.value.__notes__)
    with pytest.raises(KeyError) as caught:
        update(value_fn=lambda x, y: y["missing"], batch={"name": "train"})
    assert any("{'name': 'train'}" in note for note in caught.value.__notes__)
    chain = lejax.sgld(4, 0.1, inner_batches=True)
    for batch in ((jnp.ones(3), jnp.ones(4)), jnp.array(1.0), None):
        with pytest.raises(ValueError, match="one leading axis of inner batches"):
            update(sampler=chain, batch=batch, value_fn=lambda x, b: jnp.sum(x))
    tx = lejax.entropy_sgd(0.1, 1.0, key=KEY, num_steps=4)
    ordinary = {"value_fn": lambda x, b: jnp.sum(x * b), "batch": jnp.ones((32, 3))}
    with pytest.raises(
        ValueError, match=r"\(32, 3\).*num_steps=4.*inner_batches=False"
    ):
        tx.update(None, tx.init(X), X, **ordinary)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("importance", (4,)),
        ("pathwise", (4,)),
        ("score_function", (4,)),
        ("robbins_monro", (2, 4, 0.1)),
        ("sgld", (4, 0.1)),
    ],
)
@pytest.mark.parametrize("argument", ["axis_name", "data_axis_name"])
def test_an_axis_must_be_bound(name, counts, argument):
    sampler = getattr(lejax, name)(*counts, **{argument: "members"})
    step = lejax.step_fn(lambda x: jnp.sum(x**2), sampler, 0.1)
    with pytest.raises(ValueError, match=f"{argument}='members' is not bound; call"):
        step(X, KEY)
    mapped = jax.vmap(step, (None, 0), axis_name="others")
    with pytest.raises(ValueError, match=f"{argument}='members' is not bound; call"):
        jax.jit(mapped)(X, jax.random.split(KEY, 2))


def test_a_traced_tau_must_be_a_scalar():
    with pytest.raises(ValueError, match="tau must be a scalar"):
        jax.jit(lambda tau: transformation(tau=tau).init(X))(jnp.ones(2))


def test_what_only_looks_wrong_is_accepted():
    """Decorated losses, batches with more than arrays, plain numbers as parameters."""

    def with_scale(params, batch, scale):
        return scale * jnp.sum(params**2) * batch["size"]

    @functools.wraps(with_scale)
    def bound(params, batch):
        return with_scale(params, batch, 2.0)

    grads, _ = update(value_fn=bound, batch={"size": 3, "name": "train"})
    assert grads.shape == (2,)
    tx = transformation()
    for params in ({"w": 1.0}, {"w": np.ones(2)}):
        updates, _ = tx.update(
            None, tx.init(params), params, value_fn=lambda p: jnp.sum(p["w"] ** 2)
        )
        assert optax.apply_updates(params, updates)["w"].dtype == jnp.float32
