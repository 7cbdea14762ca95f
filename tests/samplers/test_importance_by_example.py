"""Local entropy of each example, against quadrature and its relatives."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.per_example import LOSSES, PARAMS, ROWS, dense, network, normal
from cases.problems import assert_mean, replicate

import lejax

X, Y = jnp.array([[0.5], [-1.0], [1.2]]), jnp.array([0.3, 1.0, -0.7])
SMALL = {"a": jnp.float32(0.4), "v": normal(6, 1), "w": normal(7, 1, 2)}


def estimates(sampler, loss, params, batch, tau, beta, replicates=300):
    """Displacements, numbers of leaf after leaf, and the info."""

    def one(key, *given):
        params, batch, tau, beta = given
        # Heat has none, and says so of one that it does not know.
        beta = 1.0 if sampler.regularization == "heat" else beta
        u, _, info = sampler.estimate(
            key, (), params, value_fn=loss, batch=batch, tau=tau, beta=beta
        )
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(u)]), info

    return replicate(one, replicates, given=(params, batch, tau, beta))


def each(params):
    """Skewed, with two wells; smooth enough for the grid."""
    hidden = jnp.tanh(X @ params["w"]) * jnp.array([1.0, -0.5]) + 0.1
    y = hidden.sum(1, keepdims=True) @ params["v"] * (1 + jnp.tanh(params["a"]) / 2)
    return jnp.exp(jnp.sin(y * Y)) + (jnp.tanh(y) ** 2 - jnp.abs(Y) / 2) ** 2


def alone(params, x):
    del x
    return jnp.mean(each(params)) + 2.0


def penalised(params, x):
    """A part beside the sum, which every example has."""
    return alone(params, x) + params["a"] ** 2 / 2


@functools.cache
def on_a_grid(loss, tau):
    """The losses of the examples at 41^4 points, with the points and their weights."""
    noise = np.linspace(-6, 6, 41)
    axis, phi = np.sqrt(tau) * noise, np.exp(-(noise**2) / 2)
    grid = np.stack(np.meshgrid(*[axis] * 4, indexing="ij"), -1).reshape(-1, 4)
    weight = functools.reduce(np.multiply.outer, [phi / phi.sum()] * 4).ravel()

    def at(u):
        moved = {
            "a": SMALL["a"] + u[0],
            "v": SMALL["v"] + u[1:2],
            "w": SMALL["w"] + u[None, 2:],
        }
        return each(moved) + loss(moved, X) - jnp.mean(each(moved))

    f = jax.jit(lambda us: jax.lax.map(at, us, batch_size=2**14))(
        jnp.asarray(grid, jnp.float32)
    )
    return grid, weight, np.asarray(f, np.float64)


# Each value once; the others are of the full suite.
BY_DEFAULT = [(alone, 0.3, 3.0, True), (penalised, 0.8, 0.5, False)]


@pytest.mark.parametrize(
    ("loss", "tau", "beta", "antithetic"),
    [
        pytest.param(*case, marks=() if case in BY_DEFAULT else pytest.mark.slow)
        for case in itertools.product(
            (alone, penalised), (0.3, 0.8), (0.5, 3.0), (True, False)
        )
    ],
)
def test_against_quadrature(loss, tau, beta, antithetic):
    """(1/B) Σ E_qᵢ[X] - x on a grid of 41^4 points, a leaf in no layer among them."""
    grid, weight, f = on_a_grid(loss, tau)
    weight = weight[:, None] * np.exp(-beta * f)
    total = weight.sum(0)
    sampler = lejax.importance_by_example(2000, antithetic=antithetic)
    found, info = estimates(sampler, loss, SMALL, X, tau, beta)
    assert (info.num_evaluations == 4000).all()
    truth = (weight / total).mean(1) @ grid
    # The ratio's own bias is of the order of 1/J.
    assert_mean(found, truth, bias=np.abs(truth) / 500)
    value = -np.log(total).mean() / beta
    assert_mean(info.objective, value, bias=beta * np.var(info.objective))
    spread = np.std(info.objective, ddof=1)
    assert 0.8 < np.sqrt(np.mean(info.standard_error**2)) / spread < 1.2


def thinned(default):
    """Every loss with the numbers of the full suite, and one with fewer."""
    full = [pytest.param(name, 4000, marks=pytest.mark.slow) for name in LOSSES]
    return pytest.mark.parametrize(("name", "num_samples"), [(default, 1000), *full])


@thinned("errors")
def test_between_its_relatives(name, num_samples):
    """G ≤ F ≤ F^H; where β is small they are F^H less β/2 times a variance."""
    loss = network(name)

    def values(sampler, beta):
        return estimates(sampler, loss, PARAMS, ROWS, 0.3, beta, 50)

    of_examples = lejax.importance_by_example(num_samples)
    _, g = values(of_examples, 2.0)
    _, f = values(lejax.importance(num_samples), 2.0)
    theirs, heat = values(lejax.score_function(num_samples), 1.0)
    assert g.objective.mean() < f.objective.mean() < heat.objective.mean()

    def losses(key):
        keys = jax.random.split(key, len(PARAMS))
        moved = {
            name: leaf + 0.3**0.5 * jax.random.normal(key, leaf.shape)
            for key, (name, leaf) in zip(keys, PARAMS.items(), strict=True)
        }
        return LOSSES[name](dense(moved, ROWS))

    variance = replicate(losses, 20_000).var(0).mean()
    beta = 1e-2
    ours, g = values(of_examples, beta)
    gap = heat.objective - g.objective - variance * beta / 2
    assert_mean(gap, 0.0, bias=variance * beta / 10)
    # The first order of what β does to the gradient.
    assert_mean(ours / beta - theirs, 0.0, bias=5e-2 * np.abs(theirs).max())


@thinned("skewed")
def test_of_one_example_it_is_local_entropy(name, num_samples):
    loss = network(name)
    replicates = 300 if num_samples == 4000 else 100
    for row in (ROWS[:1], ROWS[1:2]):
        (ours, info), (theirs, their_info) = (
            estimates(make(num_samples), loss, PARAMS, row, 0.3, 2.0, replicates)
            for make in (lejax.importance_by_example, lejax.importance)
        )
        assert_mean(ours - theirs, 0.0, bias=1e-3 * np.abs(theirs.mean(0)).max())
        assert_mean(info.objective - their_info.objective, 0.0)


@pytest.mark.parametrize(
    ("make", "num_samples"),
    [
        # The bias of the ratio is that of the example, in whatever batch it is.
        (lejax.importance_by_example, 500),
        pytest.param(lejax.importance_by_example, 4000, marks=pytest.mark.slow),
        pytest.param(lejax.importance, 4000, marks=pytest.mark.slow),
    ],
)
def test_minibatches_estimate_it_without_bias(make, num_samples):
    """The mean of two halves is the whole: as plain local entropy is not."""

    def loss(params, x):
        return 3 * jnp.mean(dense(params, x) ** 2)

    def displacements(rows):
        return estimates(make(num_samples), loss, PARAMS, rows, 0.3, 2.0, 200)[0]

    whole = displacements(ROWS[:4])
    halves = [displacements(ROWS[rows]) for rows in (slice(2), slice(2, 4))]
    gap = (halves[0] + halves[1]) / 2 - whole
    z = gap.mean(0) / (gap.std(0, ddof=1) / np.sqrt(len(gap)))
    assert (np.abs(z).max() < 4.5) == (make == lejax.importance_by_example)


# Ten pairs are not shared by four alike: some only fill up.
@pytest.mark.parametrize("members", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_by_chunks_and_by_members(members):
    def step(**options):
        sampler = lejax.importance_by_example(20, **options)
        return lambda batch: sampler.estimate(
            jax.random.key(1),
            (),
            PARAMS,
            value_fn=network("cross-entropy"),
            batch=batch,
            tau=0.3,
            beta=2.0,
        )[::2]

    batch = ROWS[:4]
    whole = jax.jit(step())(batch)
    chunks = jax.jit(step(chunk_size=7))(batch)
    of_members = jax.jit(jax.vmap(step(axis_name="draws"), axis_name="draws"))
    shared = of_members(jnp.stack([batch] * members))
    for other in (chunks, jax.tree.map(lambda leaf: leaf[-1], shared)):
        for mine, found in zip(*map(jax.tree.leaves, (whole, other)), strict=True):
            np.testing.assert_allclose(found, mine, 1e-4, 1e-6)


def test_members_that_hold_the_data():
    """Each its examples: the mean is theirs, and the same on all of them."""
    batch = ROWS[:4]

    def loss(params, x):
        return jnp.mean(dense(params, x) ** 2)

    sampler = lejax.importance_by_example(500, data_axis_name="rows")

    def one(key):
        def step(part):
            u, _, info = sampler.estimate(
                key, (), PARAMS, value_fn=loss, batch=part, tau=0.3, beta=2.0
            )
            leaves = [leaf.ravel() for leaf in jax.tree.leaves(u)]
            return jnp.concatenate(leaves), info.objective

        return jax.vmap(step, axis_name="rows")(batch.reshape(2, 2, -1))

    found, values = replicate(one, 300)
    np.testing.assert_allclose(found[:, 0], found[:, 1], 1e-5, 1e-6)
    whole, info = estimates(
        lejax.importance_by_example(500), loss, PARAMS, batch, 0.3, 2.0
    )
    # The draws of an example are its own, whoever holds it.
    np.testing.assert_allclose(found[:, 0], whole, 1e-4, 1e-5)
    np.testing.assert_allclose(values[:, 0], info.objective, 1e-5)


def test_an_example_that_fails():
    """Its failing draws have no weight; without any, the others move alone."""

    def loss(params, batch):
        x, bad = batch
        y = x @ params["w"] + params["b"]
        wrong = y[:, 0] > bad
        return jnp.mean(jnp.where(wrong, jnp.nan, jnp.sum(y**2, 1)))

    params = {"b": jnp.zeros(4), "w": PARAMS["w"]}
    sampler = lejax.importance_by_example(200)

    def run(rows, bad):
        return estimates(sampler, loss, params, (rows, bad), 0.3, 1.0, 100)

    never_bad = np.full(5, np.inf, np.float32)
    example = np.arange(5) == 2
    sometimes, info = run(ROWS, np.where(example, np.float32(0), never_bad))
    assert jnp.isfinite(sometimes).all()
    assert (info.nonfinite_fraction > 0).all()
    assert (info.nonfinite_fraction < 0.2).all()
    never, info = run(ROWS, np.where(example, -never_bad, never_bad))
    np.testing.assert_allclose(info.nonfinite_fraction, 0.2, 1e-6)
    assert (info.objective == jnp.inf).all()
    without, _ = run(np.delete(ROWS, 2, 0), never_bad[:4])
    assert_mean(never - 0.8 * without, 0.0)
    nothing, info = run(ROWS, -never_bad)
    np.testing.assert_array_equal(nothing, 0)
    np.testing.assert_array_equal(info.effective_sample_size, 0)


def test_no_examples():
    with pytest.raises(ValueError, match="value_fn does not separate the examples"):
        lejax.importance_by_example(10).estimate(
            jax.random.key(0), (), jnp.ones(3), value_fn=lambda x: jnp.sum(x**2), tau=1
        )


def test_positions_are_no_examples():
    """Examples lie along the first axis of the batch, or there are none."""

    def loss(params, x):
        return jnp.mean(jnp.tanh(x @ params) ** 2)

    with pytest.raises(ValueError, match="value_fn does not separate the examples"):
        lejax.importance_by_example(10).estimate(
            jax.random.key(0),
            (),
            jnp.ones((3, 3)),
            value_fn=loss,
            batch=normal(0, 4, 3, 3),  # three positions span the three inputs
            tau=1.0,
        )


def test_beside_an_example_that_fails():
    """A penalty is known also where the loss of an example is not."""

    def loss(params, x):
        y = jnp.sum((x @ params["w"]) ** 2, 1)
        failing = jnp.mean(jnp.where(jnp.arange(5) == 2, jnp.nan, y))
        return failing + params["a"] ** 2 / 2

    params = {"a": jnp.float32(1.0), "w": PARAMS["w"]}
    found, info = estimates(
        lejax.importance_by_example(500), loss, params, ROWS, 0.5, 1.0, 100
    )
    np.testing.assert_allclose(info.nonfinite_fraction, 0.2, 1e-6)
    # Four of five examples pull by -τ/(1 + τ) a.
    assert_mean(found[:, 0], -0.8 / 3, bias=2e-3)


@pytest.mark.parametrize("lost", [2.0, np.nan])
def test_equal_weights_move_nothing(lost):
    """Weights are centred: where no loss tells draws apart there is no noise either."""

    def loss(w, batch):
        x, lost = batch
        return jnp.mean(0 * (x @ w) + lost)

    sampler = lejax.importance_by_example(50, antithetic=False)
    step = jax.jit(functools.partial(sampler.estimate, value_fn=loss, tau=0.3))
    batch = ROWS, jnp.float32(lost)
    u, _, info = step(jax.random.key(0), (), jnp.ones((3, 1)), batch=batch)
    np.testing.assert_allclose(u, 0, atol=1e-6)
    assert info.nonfinite_fraction == float(np.isnan(lost))
