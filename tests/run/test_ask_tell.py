"""Losses from outside: the update is that of the losses, whoever finds them."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.registry import assert_close

import lejax

# Standard around optax.
pytestmark = pytest.mark.standard
KEY = jax.random.key(3)
PARAMS = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.ones(3)}


def loss(params, batch=None):
    del batch
    return jnp.sum(jnp.tanh(params["w"]).sum(1) * params["b"] ** 2)


def partly(params):
    """It fails somewhere."""
    return jnp.where(params["b"][0] > 1.3, jnp.nan, loss(params))


SMOOTH = {
    "importance": (lejax.local_entropy, lejax.importance(30)),
    "odd": (lejax.local_entropy, lejax.importance(31, chunk_size=4)),
    "plain": (lejax.local_entropy, lejax.importance(7, antithetic=False)),
    "one": (lejax.local_entropy, lejax.importance(2)),
    "share": (lejax.local_entropy, lejax.importance(40, beta_share=0.4)),
    "signs": (lejax.local_entropy, lejax.importance(60, signs_per_draw=5)),
    "ranks": (lejax.local_entropy, lejax.importance(30, shaping="ranks")),
    "credit": (lejax.local_entropy, lejax.importance(31, credit=True)),
    "score_function": (lejax.heat, lejax.score_function(30)),
    "gaussian": (
        functools.partial(lejax.gaussian, temperature=0.2, covariance="full"),
        lejax.importance(50, antithetic=False),
    ),
}


BY_DEFAULT = {"odd", "signs", "share", "ranks", "score_function", "gaussian"}


def chain(name, **options):
    smooth, sampler = SMOOTH[name]
    return optax.chain(smooth(sampler, 0.3, key=KEY, **options), optax.adam(0.1))


@functools.cache
def search_by(name):
    """One for all tests: what calls the host is compiled anew in each process."""
    return lejax.ask_tell(chain(name), max_failures=3)


def found(points, value_fn):
    return np.array(jax.jit(jax.vmap(value_fn))(points))


@pytest.mark.parametrize(
    "name",
    [
        name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow)
        for name in SMOOTH
    ],
)
def test_the_update_is_that_of_the_losses(name):
    tx, search = chain(name), search_by(name)
    params, state, expected = PARAMS, search.init(PARAMS), tx.init(PARAMS)

    # Whoever looks at the loss may leave out directions; here it is not its own.
    @jax.jit
    def update(state, params, zero):
        def value_fn(params, batch):
            return partly(params) + batch

        return tx.update(None, state, params, value_fn=value_fn, batch=zero)

    for _ in range(3):
        points = search.ask(state, params)
        losses = found(points, partly)
        updates, state = search.tell(points, losses, state, params)
        wanted, expected = update(expected, params, jnp.zeros(()))
        assert_close(updates, wanted, rtol=1e-3, atol=1e-5)
        assert_close(state.inner[0].info.objective, expected[0].info.objective)
        failed = np.mean(~np.isfinite(losses))
        assert_close(state.inner[0].info.nonfinite_fraction, failed)
        params = optax.apply_updates(params, updates)


def test_what_is_drawn():
    """J points about x, of variance τ, the same at every call."""
    search = lejax.ask_tell(chain("odd", mask={"w": True, "b": False}))
    state = search.init(PARAMS)
    points, again = search.ask(state, PARAMS), search.ask(state, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, points, again)
    assert points["w"].shape == (31, 3, 4)
    assert (points["b"] == 1).all()
    moved = points["w"] - PARAMS["w"]
    np.testing.assert_allclose(moved[0:30:2] + moved[1:30:2], 0, atol=1e-6)
    assert 0.2 < moved.var() < 0.4
    updates, state = search.tell(points, found(points, loss), state, PARAMS)
    assert (updates["b"] == 0).all()
    other = search.ask(state, PARAMS)
    assert not np.allclose(other["w"], points["w"])


def test_any_order_and_some_missing():
    search = search_by("importance")
    state = search.init(PARAMS)
    points = search.ask(state, PARAMS)
    losses = found(points, loss)
    losses[[3, 4, 20]] = np.nan, np.inf, np.nan
    expected, _ = search.tell(points, losses, state, PARAMS)
    numbers = np.random.default_rng(0).permutation(30)
    given = {j: losses[j] for j in numbers if j not in (3, 20)}
    updates, told = search.tell(points, given, state, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    np.testing.assert_allclose(told.inner[0].info.nonfinite_fraction, 0.1)


def test_points_outlive_their_search():
    """Asked of one, told to another that knows but what was stored: bit for bit."""
    search = search_by("importance")
    state = search.init(PARAMS)
    points = search.ask(state, PARAMS)
    losses = found(points, loss)
    leaves, tree = jax.tree.flatten(state)
    keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    stored = [
        np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        for leaf, is_key in zip(leaves, keys, strict=True)
    ]
    restored = tree.unflatten(
        jax.random.wrap_key_data(leaf) if is_key else jnp.asarray(leaf)
        for leaf, is_key in zip(stored, keys, strict=True)
    )
    other = lejax.ask_tell(chain("importance"))
    again = other.ask(restored, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, again, points)
    found_there = other.tell(points, losses, restored, PARAMS)[0]
    found_here = search.tell(points, losses, state, PARAMS)[0]
    jax.tree.map(np.testing.assert_array_equal, found_there, found_here)


SCRIPT = """
    import sys, numpy as np, jax, jax.numpy as jnp, lejax, optax
    smooth = lejax.gaussian(lejax.importance(20), 0.3, key=jax.random.key(0))
    search = lejax.ask_tell(optax.chain(smooth, optax.adam(0.1)))
    x = jnp.ones(3)
    state = search.init(x)
    tree = jax.tree.structure(state)
    path, first, last, saved = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), None
    def plain(leaf):
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if typed else leaf)
    def restored(leaf, like):
        typed = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(leaf) if typed else jnp.asarray(leaf)
    points = None
    if first:
        with np.load(path) as file:
            x, points, *parts = [file[f"arr_{i}"] for i in range(len(file))]
        x = jnp.asarray(x)
        state = tree.unflatten(map(restored, parts, jax.tree.leaves(state)))
    for step in range(first, last):
        if points is None:
            points = search.ask(state, x)
        losses = (points**4).sum(1)
        updates, state = search.tell(points, losses, state, x)
        x, points = optax.apply_updates(x, updates), None
    points = search.ask(state, x)
    np.savez(path, x, points, *map(plain, jax.tree.leaves(state)))
    print(x)
"""


@pytest.mark.slow
def test_points_outlive_their_process(tmp_path):
    """Asked in one process, told in another: bit for bit as in one."""

    def run(name, *arguments):
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), tmp_path / name]
            + [str(number) for number in arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    run("parts.npz", 0, 2)
    assert run("parts.npz", 2, 4) == run("whole.npz", 0, 4)


def test_bad_points_and_losses():
    search = search_by("importance")
    state = search.init(PARAMS)
    points = search.ask(state, PARAMS)
    losses = found(points, loss)
    for bad in (losses[:-1], np.append(losses, 0), losses[:, None], 1.0):
        with pytest.raises(ValueError, match=r"losses must have the shape \(30,\)"):
            search.tell(points, bad, state, PARAMS)
    for number in (30, -1, "a", True, 0.0):
        with pytest.raises(ValueError, match=r"number .*points 0 to 29"):
            search.tell(points, {number: 1.0}, state, PARAMS)
    with pytest.raises(ValueError, match=r"shape \(\)"):
        search.tell(points, {0: losses}, state, PARAMS)
    for bad in (losses * 1j, np.array(["a"] * 30), [None] * 30):
        with pytest.raises(TypeError, match="losses must be real"):
            search.tell(points, bad, state, PARAMS)
    updates, later = search.tell(points, losses, state, PARAMS)
    moved = optax.apply_updates(PARAMS, updates)
    for other in ((later, moved), (later, PARAMS), (state, moved)):
        with pytest.raises(ValueError, match=r"points are those of another update"):
            search.tell(points, losses, *other)


def test_all_failed():
    search = search_by("importance")  # of at most 3 failures
    state = search.init(PARAMS)

    def told(state, losses):
        points = search.ask(state, PARAMS)
        return search.tell(points, losses, state, PARAMS)[1]

    nothing = np.full(30, np.nan)
    with pytest.warns(UserWarning, match="all 30 losses of this update failed.*scale"):
        state = told(state, nothing)
    state = told(state, {})
    assert state.failed == 2
    assert told(state, np.ones(30)).failed == 0
    with pytest.raises(RuntimeError, match=r"3 updates in a row failed.*tau smaller"):
        told(state, nothing)
    with pytest.raises(ValueError, match="max_failures must be an integer"):
        lejax.ask_tell(chain("importance"), max_failures=0)


@pytest.mark.parametrize(
    "tx",
    [
        lejax.heat(lejax.pathwise(4), 0.1, key=KEY),
        lejax.local_entropy(lejax.sgld(4, 0.1), 0.1, key=KEY),
        lejax.local_entropy(lejax.importance_by_example(4), 0.1, key=KEY),
        lejax.gaussian(lejax.pathwise(4), 0.1, key=KEY),
        lejax.local_entropy(lejax.parallel(lejax.importance(4)), 0.1, key=KEY),
    ],
)
def test_what_cannot_be_asked(tx):
    search = lejax.ask_tell(tx)
    state = search.init(PARAMS)
    with pytest.raises(ValueError, match=r"ask_tell needs .*pass importance or"):
        search.ask(state, PARAMS)


def test_masked_and_infinite_losses_are_missing():
    search = search_by("importance")
    state = search.init(PARAMS)
    points = search.ask(state, PARAMS)
    losses = found(points, loss)
    losses[4], mask = -np.inf, np.arange(30) == 7
    losses[7] = -1e9
    _, told = search.tell(points, np.ma.masked_array(losses, mask), state, PARAMS)
    np.testing.assert_allclose(told.inner[0].info.nonfinite_fraction, 2 / 30, rtol=1e-5)
    assert told.inner[0].info.effective_sample_size > 0
    # What single precision cannot hold has failed as well.
    state = state._replace(failed=2)
    with pytest.raises(RuntimeError, match="all losses of 3 updates"):
        search.tell(points, np.full(30, 1e40), state, PARAMS)


def test_points_of_another_search():
    """Of another J or τ: the same key and step, and yet not the same points."""
    state = search_by("importance").init(PARAMS)
    points = search_by("importance").ask(state, PARAMS)
    for other in ("odd", "signs"):
        search = search_by(other)
        with pytest.raises(ValueError, match="points are those of another update"):
            search.tell(points, found(points, loss), state, PARAMS)
    smooth, sampler = SMOOTH["importance"]
    wider = optax.chain(smooth(sampler, 0.31, key=KEY), optax.adam(0.1))
    search = lejax.ask_tell(wider)
    with pytest.raises(ValueError, match="points are those of another update"):
        search.tell(points, found(points, loss), state, PARAMS)
    # Rounding of another machine is no fault.
    search = search_by("importance")
    near = jax.tree.map(lambda leaf: leaf * np.float32(1 + 3e-7), points)
    search.tell(near, found(points, loss), state, PARAMS)


def test_numbers_that_are_no_arrays():
    """A rate that was set by hand, and parameters of double precision."""

    def make(rate):
        head = lejax.local_entropy(lejax.importance(8), 0.1, key=KEY)
        return optax.chain(head, optax.sgd(rate))

    tx = optax.inject_hyperparams(make)(rate=0.1)
    search = lejax.ask_tell(tx)
    x = np.ones(3)
    state = search.init(jnp.asarray(x))
    state.inner.hyperparams["rate"] = 0.05
    points = search.ask(state, x)
    updates, _ = search.tell(points, (points**2).sum(1), state, jnp.asarray(x))
    assert jnp.isfinite(updates).all()


def test_what_is_no_single_smoothing():
    w, b = {"w": True, "b": False}, {"w": False, "b": True}
    smooth, sampler = SMOOTH["importance"]
    both = [smooth(sampler, 0.3, key=KEY, mask=mask) for mask in (w, b)]
    for tx, said in (
        (optax.chain(*both, optax.sgd(0.1)), "more than one estimate"),
        (optax.adam(0.1), "tx evaluates no loss"),
    ):
        search = lejax.ask_tell(tx)
        with pytest.raises(ValueError, match=said):
            search.ask(search.init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match="tx must be an optax transformation"):
        lejax.ask_tell(lejax.importance(3))
    search = search_by("importance")
    state = search.init(PARAMS)
    points = search.ask(state, PARAMS)
    with pytest.raises(TypeError, match=r"ask .*cannot be traced"):
        jax.jit(search.ask)(state, PARAMS)
    with pytest.raises(TypeError, match=r"tell .*cannot be traced"):
        jax.jit(search.tell)(points, np.ones(30), state, PARAMS)


@pytest.mark.parametrize("name", ["odd", "share", "score_function", "gaussian"])
def test_losses_that_differ_in_digits_of_double_precision(name):
    """A constant of 1e9 changes nothing but the objective."""
    search = search_by(name)
    state = search.init(PARAMS)
    points = search.ask(state, PARAMS)
    losses = found(points, loss).astype(np.float64)
    near, one = search.tell(points, losses, state, PARAMS)
    far, other = search.tell(points, losses + 1e9, state, PARAMS)
    # Of the losses what double precision keeps beside the constant.
    assert_close(far, near, rtol=1e-3, atol=1e-5)
    infos = [optax.tree.get(told.inner, "info") for told in (one, other)]
    np.testing.assert_allclose(infos[1].objective, 1e9 + infos[0].objective, rtol=1e-6)
    for field in ("effective_sample_size", "standard_error"):
        np.testing.assert_allclose(*(getattr(info, field) for info in infos), 1e-3)
    # And of the losses alone it is their own.
    jitted, state = jax.jit(
        lambda state: chain(name).update(None, state, PARAMS, value_fn=loss)
    )(state.inner)
    assert_close(near, jitted, rtol=1e-3, atol=1e-5)
    expected = optax.tree.get(state, "info").objective
    np.testing.assert_allclose(infos[0].objective, expected, rtol=1e-4)


def test_leaves_that_are_not_perturbed():
    """Of size 0, and keys that a mask leaves out, are parts of a point as they are."""
    params = {"w": jnp.ones(3), "none": jnp.zeros((0, 2)), "key": jax.random.key(1)}
    mask = {"w": True, "none": True, "key": False}
    smooth = lejax.local_entropy(lejax.importance(20), 0.3, key=KEY, mask=mask)
    search = lejax.ask_tell(smooth)
    state = search.init(params)
    points = search.ask(state, params)
    assert points["none"].shape == (20, 0, 2)
    updates, _ = search.tell(points, (points["w"] ** 2).sum(1), state, params)
    assert (updates["w"] > 0).all()
    assert updates["none"].shape == (0, 2)


def test_nothing_is_compiled_twice():
    """Of a start by `jnp.full`, whose type is weak, and of Python numbers."""
    for x in (jnp.full(3, 2.0), {"a": 2.0, "b": jnp.ones(2)}):
        counts = []
        search = lejax.ask_tell(
            optax.chain(
                lejax.local_entropy(lejax.importance(10), 0.3, key=KEY), optax.sgd(0.1)
            )
        )
        state = search.init(x)
        for _ in range(3):
            with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
                compiled = []
                patch.setattr(
                    logging.getLogger("jax._src.interpreters.pxla"),
                    "log",
                    lambda level, text, *args, found=compiled: found.append(text),
                )
                points = search.ask(state, x)
                losses = sum(
                    (np.asarray(leaf).reshape(10, -1) ** 2).sum(1)
                    for leaf in jax.tree.leaves(points)
                )
                updates, state = search.tell(points, losses, state, x)
            counts.append(len(compiled))
            x = optax.apply_updates(x, updates)
        assert counts[1:] == [0, 0]
