"""Bad input: an error that names the argument, the value and the mend."""

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


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "ten", None, np.float32(3)])
def test_counts(bad):
    makers = [
        ("num_samples", lejax.importance),
        ("num_samples", lejax.pathwise),
        ("num_samples", lejax.score_function),
        ("num_samples", lambda n: lejax.robbins_monro(5, n, 0.1)),
        ("num_steps", lambda n: lejax.robbins_monro(n, 5, 0.1)),
        ("num_steps", lambda n: lejax.sgld(n, 0.1)),
    ]
    for name, make in makers:
        with pytest.raises(ValueError, match=rf"{name} must be an integer.*{name}="):
            make(bad)


def test_chunk_size():
    for make in (lejax.importance, lejax.pathwise, lejax.score_function):
        with pytest.raises(ValueError, match="chunk_size must be an integer"):
            make(10, chunk_size=0)
    assert lejax.importance(np.int64(3)).name == "importance"


def test_signs_per_draw():
    with pytest.raises(ValueError, match="signs_per_draw must be an integer"):
        lejax.importance(10, signs_per_draw=0)
    with pytest.raises(ValueError, match="signs_per_draw must be at most 32, got 33"):
        lejax.importance(10, signs_per_draw=33)


def test_averaging():
    with pytest.raises(ValueError, match=r"averaging must be at most 1, got 1.5.*0.75"):
        lejax.sgld(4, 0.1, averaging=1.5)


def test_an_inner_chain_that_diverges():
    with pytest.raises(ValueError, match=r"inner_learning_rate is 0.2.*raise tau"):
        lejax.entropy_sgd(0.1, 0.1, key=KEY, inner_learning_rate=0.2)


def test_score_function_needs_two_draws():
    with pytest.raises(
        ValueError, match="num_samples must be an integer of at least 2"
    ):
        lejax.score_function(1)


@pytest.mark.parametrize("bad", [0.0, -0.1, jnp.nan, jnp.inf, "0.1", None, 0, True])
def test_positive_numbers(bad):
    """τ, β, step sizes and variances, wherever they are given."""
    sampler, heat = lejax.importance(4), lejax.pathwise(4)
    calls = {
        "tau": [
            lambda: transformation(tau=bad),
            lambda: transformation(tau=lambda k: bad),
            lambda: lejax.heat(heat, bad, key=KEY),
            lambda: lejax.entropy_sgd(0.1, bad, key=KEY),
            lambda: lejax.step_fn(loss, sampler, bad),
            lambda: lejax.value_and_grad(loss, sampler, bad),
            lambda: sampler.step(KEY, (), X, value_fn=loss, tau=bad),
        ],
        "beta": [
            lambda: transformation(beta=bad),
            lambda: lejax.step_fn(loss, sampler, 0.1, beta=bad),
            lambda: sampler.step(KEY, (), X, value_fn=loss, tau=0.1, beta=bad),
        ],
        "step_size": [
            lambda: lejax.sgld(4, bad),
            lambda: lejax.sgld(4, lambda j: bad),
            lambda: lejax.robbins_monro(4, 4, bad),
        ],
        "temperature": [lambda: lejax.sgld(4, 0.1, temperature=bad)],
        "init_value": [
            lambda: lejax.scoping(bad, 0.1),
            lambda: lejax.target_share(0.5, bad),
        ],
        "gain": [lambda: lejax.target_share(0.5, 0.1, gain=bad)],
        "max_change": [lambda: lejax.target_share(0.5, 0.1, max_change=bad)],
        "max_ratio": [lambda: lejax.target_share(0.5, 0.1, max_ratio=bad)],
        "inner_learning_rate": [
            lambda: lejax.entropy_sgd(0.1, 1.0, key=KEY, inner_learning_rate=bad)
        ],
        "noise": [lambda: lejax.entropy_sgd(0.1, 1.0, key=KEY, noise=bad)],
    }
    if bad is not None:
        calls["averaging"] = [lambda: lejax.sgld(4, 0.1, averaging=bad)]
        calls["smoothing"] = [lambda: lejax.robbins_monro(4, 4, 0.1, smoothing=bad)]
    for name, makers in calls.items():
        for make in makers:
            with pytest.raises(ValueError, match=rf"{name}(\(0\))? must be a positive"):
                make()


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 2, np.nan, "half", True])
def test_shares(bad):
    for name, make in (
        ("share", lambda: lejax.beta_for_share(X, bad)),
        ("share", lambda: lejax.target_share(bad, 0.1)),
        ("target_share", lambda: lejax.importance(4, target_share=bad)),
    ):
        with pytest.raises(ValueError, match=rf"^{name} must be between 0 and 1, got"):
            make()
    with pytest.raises(ValueError, match=r"^share\(0\) must be between 0 and 1, got"):
        lejax.target_share(lambda k: bad, 0.1)


def test_the_numbers_of_a_controller():
    with pytest.raises(ValueError, match=r"gain must be at most 1, got 1.5.*gain=0.1"):
        lejax.target_share(0.5, 0.1, gain=1.5)
    for name in ("max_change", "max_ratio"):
        with pytest.raises(ValueError, match=rf"{name} must be above 1, got 1.0"):
            lejax.target_share(0.5, 0.1, **{name: 1.0})


def test_a_share_that_no_controller_can_follow():
    """Chains and heat tell none, adapted importance sampling follows it itself."""
    tau = lejax.target_share(0.5, 0.1)
    adapts = lejax.importance(4, target_share=0.5)
    message = "tau by target_share goes by the share of.*{}.*pass a number or a sched"
    for name, make in (
        ("sgld", lambda: transformation(sampler=lejax.sgld(4, 0.1), tau=tau)),
        ("importance", lambda: transformation(sampler=adapts, tau=tau)),
        ("pathwise", lambda: lejax.heat(lejax.pathwise(4), tau, key=KEY)),
        (
            "importance",
            lambda: lejax.minimize(loss, X, tau=tau, key=KEY, sampler=adapts),
        ),
    ):
        with pytest.raises(ValueError, match=message.format(name)):
            make()
    for make in (lejax.step_fn, lejax.value_and_grad):
        with pytest.raises(ValueError, match="tau must be a positive finite number"):
            make(loss, lejax.importance(4), tau)


@pytest.mark.parametrize("bad", [-1, -2.0, np.inf, np.nan, "fast"])
def test_rate_of_scoping(bad):
    with pytest.raises(ValueError, match="rate must be a finite number above -1"):
        lejax.scoping(1.0, bad)


def test_a_langevin_chain_that_diverges():
    sampler = lejax.sgld(10, 0.5)
    for make in (
        lambda: transformation(sampler=sampler, tau=0.1),
        lambda: transformation(sampler=sampler, tau=lejax.scoping(0.1, 0.01)),
        lambda: lejax.step_fn(loss, sampler, 0.1)(X, KEY),
    ):
        with pytest.raises(ValueError, match=r"step_size starts at 0.5.*raise tau"):
            make()
    transformation(sampler=sampler, tau=0.13)


def test_a_sampler_of_the_other_regularisation():
    with pytest.raises(ValueError, match=r"sampler=robbins_monro.*lejax\.heat"):
        transformation(sampler=lejax.robbins_monro(4, 4, 0.1))
    with pytest.raises(ValueError, match=r"sampler=importance.*lejax\.local_entropy"):
        lejax.heat(lejax.importance(4), 0.1, key=KEY)
    for not_one in (lejax.importance, None):
        with pytest.raises(TypeError, match="sampler must be a lejax sampler"):
            transformation(sampler=not_one)
        with pytest.raises(TypeError, match="sampler must be a lejax sampler"):
            lejax.step_fn(loss, not_one, 0.1)
    with pytest.raises(ValueError, match="beta must be 1 for pathwise"):
        lejax.step_fn(loss, lejax.pathwise(4), 0.1, beta=2.0)


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
        lambda params: lejax.importance(4).step(
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
