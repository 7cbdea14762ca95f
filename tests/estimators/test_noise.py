"""The noise in an update, as the info tells it, against that of replicates."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.problems import assert_mean, replicate

import lejax

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(5, 4)).astype(np.float32)
LABELS = np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 2]]
PARAMS = {
    "a": RNG.normal(size=(4, 6)).astype(np.float32) / 2,
    "b": RNG.normal(size=(6, 3)).astype(np.float32) / 2,
    "c": np.zeros(3, np.float32),
}
SAMPLERS = {
    "importance": functools.partial(lejax.importance, credit=False),
    "importance, credit": functools.partial(lejax.importance, credit=True),
    "score_function": functools.partial(lejax.score_function, credit=False),
    "score_function, credit": lejax.score_function,
    "pathwise": lejax.pathwise,
}


def loss(params, batch):
    inputs, labels = batch
    logits = jnp.tanh(inputs @ params["a"]) @ params["b"] + params["c"]
    return -jnp.mean((jax.nn.log_softmax(logits) * labels).sum(-1))


def runs(sampler, replicates=1500, tau=0.3, beta=1.0):
    """Displacements as vectors, and the infos."""

    def run(key, tau, beta=1.0):
        displacement, _, info = sampler.estimate(
            key,
            sampler.init(PARAMS),
            PARAMS,
            value_fn=loss,
            batch=(INPUTS, LABELS),
            tau=tau,
            beta=beta,
        )
        return jax.flatten_util.ravel_pytree(displacement)[0], info

    given = (tau, beta) if sampler.regularization == "local entropy" else (tau,)
    displacements, info = replicate(run, replicates, given=given)
    return np.asarray(displacements, np.float64), info


@pytest.mark.standard
@pytest.mark.parametrize(
    ("tau", "samples", "antithetic"),
    [(0.1, 100, True), pytest.param(0.4, 401, False, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_squared_error_is_that_of_replicates(name, tau, samples, antithetic):
    sampler = SAMPLERS[name](samples, antithetic=antithetic)
    beta = 1.0 if sampler.regularization == "heat" else 2.0
    found, info = runs(sampler, tau=tau, beta=beta)
    squares = ((found - found.mean(0)) ** 2).sum(1) * len(found) / (len(found) - 1)
    # With credit the spread of the groups' weights is in it too, about 1/d of it.
    extra = 1 / found.shape[1] if "credit" in name else 0.01
    told = np.asarray(info.squared_error, np.float64)
    assert_mean(told - squares, 0, bias=extra * squares.mean())
    assert told.std() < 0.5 * told.mean()
    norms = (found**2).sum(1)
    np.testing.assert_allclose(info.signal, 1 - told / norms, rtol=1e-3, atol=1e-4)
    if sampler.name == "importance":
        # The jackknife says too much, of what is of second order up to √2 times, and
        # with ten groups to some percent.
        error = np.sqrt(np.mean((np.asarray(info.signal_standard_error) * norms) ** 2))
        assert 1 < error / (norms - told).std() < 2.1
    else:
        assert np.isnan(info.signal_standard_error).all()


@pytest.mark.standard
def test_the_complement_is_noise_as_well():
    batch = INPUTS[:2], LABELS[:2]
    sampler = lejax.importance(100, antithetic=False, sample_complement=True)

    def run(key):
        displacement, _, info = sampler.estimate(
            key, (), PARAMS, value_fn=loss, batch=batch, tau=0.3
        )
        return jax.flatten_util.ravel_pytree(displacement)[0], info.squared_error

    found, told = replicate(run, 1500)
    found = np.asarray(found, np.float64)
    squares = ((found - found.mean(0)) ** 2).sum(1) * len(found) / (len(found) - 1)
    assert_mean(told - squares, 0, bias=0.01 * squares.mean())


@pytest.mark.standard
@pytest.mark.parametrize("samples", [38, pytest.param(200, marks=pytest.mark.slow)])
def test_chunks_change_nothing(samples):
    """Groups are of the same units, one by one or side by side; a rest is one more."""
    found = [
        runs(lejax.importance(samples, credit=True, chunk_size=size), 2)
        for size in (2, 10, 40, 1000)
    ]
    for displacement, info in found[1:]:
        np.testing.assert_allclose(displacement, found[0][0], atol=1e-5)
        for one, other in zip(info, found[0][1], strict=True):
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=2e-3)


@pytest.mark.standard
@pytest.mark.parametrize(
    "sampler",
    [
        lejax.importance(2),
        lejax.pathwise(2),
        lejax.sgld(3, 0.01),
        lejax.robbins_monro(2, 2, 0.1),
        lejax.importance_by_example(10),
    ],
)
def test_unknown_is_nan(sampler):
    """From one unit, or a chain."""
    _, info = runs(sampler, 2)
    assert np.isnan(info.squared_error).all()
    assert np.isnan(info.signal).all()
    assert np.isnan(info.signal_standard_error).all()


@pytest.mark.standard
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("importance, credit", "pathwise")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in SAMPLERS
    ],
)
def test_members_tell_the_noise_of_all(name):
    """Over an axis of samples: the same displacement, and the noise in all of it."""
    whole, parts = SAMPLERS[name](400), SAMPLERS[name](400, axis_name="i")
    given = dict(value_fn=loss, batch=(INPUTS, LABELS), tau=0.3)

    def of_all(key):
        return whole.estimate(key, (), PARAMS, **given)

    def of_members(key):
        step = jax.vmap(
            lambda _: parts.estimate(key, (), PARAMS, **given),
            axis_name="i",
            axis_size=4,
        )
        return jax.tree.map(lambda leaf: leaf[0], step(jnp.arange(4)))

    found, expected = replicate(of_members, 200), replicate(of_all, 200)
    for a, b in zip(*map(jax.tree.leaves, (found[0], expected[0])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    gap = found[2].squared_error - expected[2].squared_error
    assert_mean(gap, 0, bias=0.01 * float(expected[2].squared_error.mean()))
    if whole.name == "importance":
        # Along the direction of all, whatever the members.
        ratio = np.mean(found[2].signal_standard_error ** 2) / np.mean(
            expected[2].signal_standard_error ** 2
        )
        assert 0.8 < ratio < 1.25


@pytest.mark.standard
def test_data_axes_and_credit():
    """Importance does not know it there; forwards, examples have draws of their own."""
    batch = (INPUTS[:4].reshape(2, 2, 4), LABELS[:4].reshape(2, 2, 3))

    def noise(sampler):
        def run(key):
            step = jax.vmap(
                lambda batch: sampler.estimate(
                    key, (), PARAMS, value_fn=loss, batch=batch, tau=0.3
                ),
                axis_name="data",
            )
            displacement, _, info = jax.tree.map(lambda leaf: leaf[0], step(batch))
            return jax.flatten_util.ravel_pytree(displacement)[0], info.squared_error

        return replicate(run, 1500)

    assert np.isnan(noise(lejax.importance(64, data_axis_name="data"))[1]).all()
    found, told = noise(lejax.score_function(64, data_axis_name="data"))
    found = np.asarray(found, np.float64)
    squares = ((found - found.mean(0)) ** 2).sum(1) * len(found) / (len(found) - 1)
    assert_mean(told - squares, 0, bias=0.02 * squares.mean())


def test_a_state_holds_it():
    tx = lejax.local_entropy(lejax.importance(100), 0.5, key=jax.random.key(0))
    x = jnp.ones(2)
    state = tx.init(x)
    assert np.isnan(state.info.signal)
    _, state = jax.jit(
        lambda s: tx.update(None, s, x, value_fn=lambda x: jnp.sum(x**2))
    )(state)
    assert 0.5 < optax.tree.get(state, "info").signal < 1
