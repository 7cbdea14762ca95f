"""Credit by example: a control variate of mean zero, and who gets it."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.per_example import (
    LOSSES,
    PARAMS,
    ROWS,
    assert_zero,
    dense,
    mean_of_control_variates,
    network,
    normal,
    reasons,
)
from cases.problems import assert_mean, replicate

import lejax


@pytest.mark.parametrize(
    ("name", "tau", "blocks"),
    [("cross-entropy", 0.3, 200), ("skewed", 2.0, 200)]
    + [
        pytest.param(name, tau, 1000, marks=pytest.mark.slow)
        for name in LOSSES
        for tau in (0.3, 2.0)
    ],
)
def test_the_control_variate_has_mean_zero(name, tau, blocks):
    """For every number of every layer; in full over 10^6 evaluations."""
    sums = mean_of_control_variates(network(name), PARAMS, ROWS, tau, blocks)
    assert sums.shape[1] == 26
    assert_zero(sums)


BY_DEFAULT = (0.3, 3.0, True), (1.5, 0.5, False)


@pytest.mark.parametrize(
    ("tau", "beta", "antithetic"),
    [
        pytest.param(*case, marks=() if case in BY_DEFAULT else pytest.mark.slow)
        for case in itertools.product((0.3, 1.5), (0.5, 3.0), (True, False))
    ],
)
def test_unbiased_against_quadrature(tau, beta, antithetic):
    """Two layers of two units: 4 numbers, E_q[X] - x on a grid of 37^4 points."""
    params = {"v": normal(6, 2), "w": normal(7, 1, 2)}
    x, y = jnp.array([[0.5], [-1.0], [2.0]]), jnp.array([0.3, 1.0, -0.7])

    def loss(params, x):
        return jnp.mean(jnp.exp(jnp.tanh(x @ params["w"]) @ params["v"] * y) / 2)

    noise = np.linspace(-5.4, 5.4, 37)
    axis, phi = np.sqrt(tau) * noise, np.exp(-(noise**2) / 2)
    grid = np.stack(np.meshgrid(*[axis] * 4, indexing="ij"), -1).reshape(-1, 4)
    weight = functools.reduce(np.multiply.outer, [phi] * 4).ravel()

    def at(u):
        return loss({"v": params["v"] + u[:2], "w": params["w"] + u[None, 2:]}, x)

    f = jax.jit(lambda us: jax.lax.map(at, us, batch_size=2**14))(
        jnp.asarray(grid, jnp.float32)
    )
    weight = weight * np.exp(-beta * (np.asarray(f, np.float64) - float(f.min())))
    truth = weight @ grid / weight.sum()

    def estimates(credit):
        sampler = lejax.importance(5000, antithetic=antithetic, credit=credit)

        def one(key, tau, beta):
            u, _, info = sampler.estimate(
                key, (), params, value_fn=loss, batch=x, tau=tau, beta=beta
            )
            return jnp.concatenate([u["v"], u["w"].ravel()]), info.num_evaluations

        return replicate(one, 200, given=(tau, beta))

    found, evaluations = estimates(credit=True)
    assert (evaluations == 5001).all()
    assert_mean(found, truth, bias=np.abs(truth) / 1000)
    plain, _ = estimates(credit=False)
    assert np.var(found, 0).sum() < np.var(plain, 0).sum()


def variance(num_samples, **options):
    """A wider network, whose examples see little of its noise each."""
    params = {"w": normal(8, 40, 30) / 6, "v": normal(9, 30, 3) / 5}
    batch = normal(10, 20, 40), jnp.arange(20) % 3

    def loss(params, batch):
        logits = jnp.tanh(batch[0] @ params["w"]) @ params["v"]
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch[1]
        ).mean()

    def estimate(key, params, batch):
        u, _, _ = lejax.importance(num_samples, **options).estimate(
            key, (), params, value_fn=loss, batch=batch, tau=0.01, beta=1.0
        )
        return jnp.concatenate([u["v"].ravel(), u["w"].ravel()])

    return np.var(replicate(estimate, 40, given=(params, batch)), 0).sum()


@pytest.mark.parametrize(
    "num_samples", [100, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_less_noise(num_samples):
    of_pairs = variance(num_samples, credit=True)
    assert of_pairs < 0.2 * variance(num_samples, credit=False)
    # Plain draws keep what the loss at x is from the mean loss: twice the noise here.
    assert variance(num_samples, credit=True, antithetic=False) < 3 * of_pairs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "share"), [({"reduction": False}, 0.2), ({"antithetic": False}, 0.01)]
)
def test_less_noise_in_full_space_and_of_plain_draws(options, share):
    credited, raw = (variance(1000, credit=c, **options) for c in (True, False))
    assert credited < share * raw


BY_WAY = (True, "chunks"), (False, "draws"), (True, "data")


@pytest.mark.parametrize(
    ("antithetic", "way"),
    [
        pytest.param(*case, marks=() if case in BY_WAY else pytest.mark.slow)
        for case in itertools.product((True, False), ("chunks", "draws", "data"))
    ],
)
def test_the_same_by_chunks_and_by_members(antithetic, way):
    """Whatever the chunks, and whoever draws or holds the data."""

    def step(**options):
        sampler = lejax.importance(100, antithetic=antithetic, credit=True, **options)
        return lambda batch: sampler.estimate(
            jax.random.key(1),
            (),
            PARAMS,
            value_fn=loss,
            batch=batch,
            tau=0.3,
            beta=2.0,
        )[0]

    def loss(params, batch):
        x, labels = batch
        y = dense(params, x)
        return optax.losses.softmax_cross_entropy_with_integer_labels(y, labels).mean()

    batch = normal(11, 4, 3), jnp.array([0, 1, 1, 0])
    whole = jax.jit(step())(batch)
    shares = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), batch)
    parts = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), batch)
    other, given = {
        "chunks": lambda: (step(chunk_size=7), batch),
        "draws": lambda: (jax.vmap(step(axis_name="draws"), axis_name="draws"), shares),
        "data": lambda: (
            jax.vmap(step(data_axis_name="rows"), axis_name="rows"),
            parts,
        ),
    }[way]()
    other = jax.jit(other)(given)
    for leaf, mine in whole.items():
        for found in np.asarray(other[leaf]).reshape(-1, *mine.shape):
            np.testing.assert_allclose(found, mine, 1e-4, 1e-6)


def updated(sampler, loss, batch=ROWS):
    """The displacement and the info of an update, in jit."""

    @jax.jit
    def step(params, batch):
        return sampler.estimate(
            jax.random.key(0), (), params, value_fn=loss, batch=batch, tau=0.3
        )[::2]

    return step(PARAMS, batch)


def test_examples_that_fail_keep_their_part():
    """One example has no loss at half of all points: the others' credit stands."""

    def loss(params, x):
        y = dense(params, x)[:, 0]
        return jnp.mean(jnp.where((jnp.arange(5) == 2) & (y > 0), jnp.nan, y**2))

    sums = mean_of_control_variates(loss, PARAMS, ROWS, 0.3, blocks=400)
    assert_zero(sums)
    u, info = updated(lejax.importance(100, credit=True), loss)
    assert 0 < info.nonfinite_fraction < 1
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(u))


def test_no_sum_over_examples():
    def worst(params, x):
        return jnp.max(dense(params, x) ** 2)

    assert set(reasons(worst, PARAMS, ROWS)) == {"the loss is no sum over examples"}
    u, info = updated(lejax.importance(20, credit=True), worst)
    plain, _ = updated(lejax.importance(20), worst)
    assert info.num_evaluations == 20
    jax.tree.map(np.testing.assert_array_equal, u, plain)


def credited(loss, batch):
    return updated(lejax.importance(100, credit=True), loss, batch)[0]


def test_a_row_that_is_not_finite():
    """Of an example that the loss leaves out, as padding is: nothing has seen it."""

    def loss(params, x):
        lost = LOSSES["square"](dense(params, x))
        return jnp.sum(jnp.where(jnp.arange(5) == 4, 0, lost)) / 4

    whole = credited(loss, ROWS.at[4].set(0))
    for bad in (jnp.nan, jnp.inf):
        found = credited(loss, ROWS.at[4, 1].set(bad))
        for leaf, mine in whole.items():
            np.testing.assert_allclose(found[leaf], mine, 1e-4, 1e-6)


def test_examples_along_the_last_axis():
    """The product has them behind the units, where the kernel is its left factor."""

    def turned(params, x):
        hidden = jax.lax.dot_general(params["w"], x, (((0,), (1,)), ((), ())))
        hidden = jnp.tanh(hidden + params["b"][:, None])
        y = jax.lax.dot_general(params["v"], hidden, (((0,), (0,)), ((), ())))
        return jnp.mean(LOSSES["square"](y.T + params["c"]))

    assert set(reasons(turned, PARAMS, ROWS)) == {""}
    whole, found = credited(network("square"), ROWS), credited(turned, ROWS)
    for leaf, mine in whole.items():
        np.testing.assert_allclose(found[leaf], mine, 1e-4, 1e-6)


@pytest.mark.parametrize("kind", [bool, jnp.int8, jnp.int32, jnp.uint8])
def test_rows_of_integers(kind):
    """Of 0 and 1, as they are: the same credit as of floating ones."""
    x = jax.random.bernoulli(jax.random.key(4), 0.5, ROWS.shape)

    def loss(params, x):
        # Of several dtypes the product is that of the weights.
        hidden = jax.lax.dot_general(
            x,
            params["w"],
            (((1,), (0,)), ((), ())),
            preferred_element_type=params["w"].dtype,
        )
        y = jnp.tanh(hidden + params["b"]) @ params["v"]
        return jnp.mean(LOSSES["square"](y + params["c"]))

    assert set(reasons(loss, PARAMS, x.astype(kind))) == {""}
    whole = credited(loss, x.astype(ROWS.dtype))
    found = credited(loss, x.astype(kind))
    for leaf, mine in whole.items():
        np.testing.assert_allclose(found[leaf], mine, 1e-4, 1e-6)
