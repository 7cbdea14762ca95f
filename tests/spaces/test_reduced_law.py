"""Reduced samplers against direct ones: the same laws, compared in standard errors."""

from __future__ import annotations

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from cases.problems import assert_mean, replicate
from cases.small_network import BATCH, HIDDEN, INPUTS, NEXT, PARAMS, TAU, network

import lejax
from lejax._spaces import null_space


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def displacements(
    sampler, replicates, tau=TAU, beta=1.0, params=PARAMS, batch=BATCH, seed=0
):
    """Flat displacements of independent updates, and their infos."""

    # Heat has no β, not even one that is traced.
    options = {} if sampler.regularization == "heat" else {"beta": beta}

    def step(key, tau, options):
        found, _, info = sampler.estimate(
            key,
            sampler.init(params),
            params,
            value_fn=network,
            batch=batch,
            tau=tau,
            **options,
        )
        return flat(found), info

    found, info = replicate(step, replicates, seed, given=(tau, options))
    return np.asarray(found, np.float64), info


def assert_same_mean(a, b, sigmas=4.5):
    """Two samples have the same mean, to standard errors of the difference."""
    error = np.sqrt(a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b))
    gap = np.abs(a.mean(0) - b.mean(0))
    assert (gap <= sigmas * error + 1e-7).all(), gap / error


def assert_same_covariance(a, b):
    """And the same covariances, all of them."""

    def products(x):
        centred = x - x.mean(0)
        return (centred[:, :, None] * centred[:, None]).reshape(len(x), -1)

    assert_same_mean(products(a), products(b), sigmas=5)


@pytest.mark.parametrize(
    ("antithetic", "tau", "beta"),
    [
        (True, TAU, 1.0),
        (False, 1.3, 0.3),
        pytest.param(True, TAU, 0.3, marks=pytest.mark.slow),
        pytest.param(False, TAU, 1.0, marks=pytest.mark.slow),
        pytest.param(False, TAU, 0.3, marks=pytest.mark.slow),
    ],
)
def test_importance(antithetic, tau, beta):
    run = functools.partial(displacements, replicates=8000, tau=tau, beta=beta)

    def make(**options):
        return lejax.importance(40, antithetic=antithetic, credit=False, **options)

    direct, info = run(make(reduction=False))
    reduced, reduced_info = run(make(), seed=1)
    in_law, _ = run(make(sample_complement=True), seed=2)
    assert_same_mean(reduced, direct)
    assert_same_mean(np.asarray(reduced_info.objective), np.asarray(info.objective))
    # What the loss does not see is not drawn: 3 of 5 directions of every column.
    assert reduced.var(0).sum() < 0.8 * direct.var(0).sum()
    assert_same_mean(in_law, direct)
    assert_same_covariance(in_law, direct)


@pytest.mark.parametrize("name", ["pathwise", "score_function"])
def test_heat(name):
    make = getattr(lejax, name)
    if name == "score_function":
        make = functools.partial(make, credit=False)
    direct, info = displacements(make(40, reduction=False), 8000)
    reduced, reduced_info = displacements(make(40), 8000, seed=1)
    assert_same_mean(reduced, direct)
    assert_same_mean(np.asarray(reduced_info.objective), np.asarray(info.objective))
    assert reduced.var(0).sum() < 1.03 * direct.var(0).sum()
    if name == "pathwise":  # gradients lie in the directions that the loss sees
        assert_same_covariance(reduced, direct)
    else:
        assert reduced.var(0).sum() < 0.8 * direct.var(0).sum()


def test_robbins_monro():
    """Its iterates stay in the directions that the loss sees: the same law."""

    def make(**options):
        return lejax.robbins_monro(
            4, 6, lambda j: 0.5 / (1 + j.astype(float)), **options
        )

    direct, _ = displacements(make(reduction=False), 8000)
    reduced, _ = displacements(make(), 8000, seed=1)
    assert_same_mean(reduced, direct)
    assert_same_covariance(reduced, direct)


def chain(replicates, seed, tau, **options):
    """(displacement, end - x) of an update after one on another batch, from afar.

    Between the two the parameters move, as an optimiser's would.
    """
    sampler = lejax.sgld(
        6,
        lambda j: 0.3 / (1 + j.astype(float)),
        temperature=lambda j: 1 + j.astype(float),
        warm_start=True,
        **options,
    )
    moved = jax.tree.map(lambda leaf: leaf + 0.1, PARAMS)

    def run(key, tau):
        first, second = jax.random.split(key)
        state = lejax.SGLDState(jax.tree.map(lambda leaf: 1.3 * leaf - 0.2, PARAMS))
        common = {"value_fn": network, "tau": tau, "beta": 0.7}
        _, state, _ = sampler.estimate(first, state, PARAMS, batch=BATCH, **common)
        found, state, info = sampler.estimate(
            second, state, moved, batch=NEXT, **common
        )
        end = jax.tree.map(jnp.subtract, state.position, moved)
        return flat(found), flat(end), info.nonfinite_fraction

    found, end, refused = replicate(run, replicates, seed, given=(tau,))
    assert (refused == 0).all()
    return np.asarray(found, np.float64), np.asarray(end, np.float64)


@pytest.mark.parametrize(
    ("averaging", "tau", "replicates"),
    [
        (None, 0.3, 4000),
        (0.4, 1.5, 4000),
        pytest.param(None, TAU, 20_000, marks=pytest.mark.slow),
        pytest.param(0.4, TAU, 20_000, marks=pytest.mark.slow),
    ],
)
def test_sgld(averaging, tau, replicates):
    """Mean and covariance of the chain's end; in law asked for, of its average too."""
    run = functools.partial(chain, replicates, tau=tau, averaging=averaging)
    found, end = run(0, reduction=False)
    reduced, reduced_end = run(1)
    in_law, in_law_end = run(2, sample_complement=True)
    assert_same_mean(reduced_end, end)
    assert_same_covariance(reduced_end, end)
    both, in_law_both = np.hstack([found, end]), np.hstack([in_law, in_law_end])
    assert_same_mean(in_law_both, both)
    assert_same_covariance(in_law_both, both)

    # Without it, the average has the chain's own law where the loss sees it, and 0
    # elsewhere.
    q, _ = np.linalg.qr(np.asarray(NEXT, np.float64).T)
    inside = q @ q.T

    def kernel(x):
        return x[:, 4:].reshape(-1, INPUTS, HIDDEN)

    outside = np.einsum("ij,rjk->rik", np.eye(INPUTS) - inside, kernel(reduced))
    np.testing.assert_allclose(outside, 0, atol=1e-6)
    assert_same_mean(reduced[:, :4], found[:, :4])
    seen = [np.einsum("ij,rjk->rik", inside, kernel(x)) for x in (reduced, found)]
    assert_same_mean(*seen)
    assert_same_covariance(*(x.reshape(len(x), -1) for x in seen))


def test_the_unseen_part_of_a_chain_by_linear_algebra():
    """Points and their running mean as linear maps of the start and the noises."""
    rng = np.random.default_rng(0)
    rates, variances, shares = rng.uniform(0.2, 1, (3, 5))
    y, mean = np.zeros(6), np.zeros(6)  # coefficients of y_1 and of five noises
    y[0] = 1
    point, running = null_space.point(1, jnp.float32), null_space.no_mean(jnp.float32)
    for j in range(5):
        mean += shares[j] * (y - mean)
        point, running = null_space.visited(point, running, jnp.float32(shares[j]))
        y *= rates[j]
        y[1 + j] = np.sqrt(variances[j])
        point = null_space.moved(
            point, jnp.float32(rates[j]), jnp.float32(variances[j])
        )
    np.testing.assert_allclose(
        [*point, *running],
        [y[0], y[1:] @ y[1:], y[1:] @ mean[1:], mean[0], mean[1:] @ mean[1:]],
        rtol=1e-5,
    )


def test_sgld_that_refuses_its_start():
    """The complement starts at x as well: no trace of where the chain was left."""
    sampler = lejax.sgld(4, 0.1, sample_complement=True, warm_start=True)
    far = jax.tree.map(lambda leaf: leaf + 1e4, PARAMS)

    def loss(params, x):
        return jnp.where(jnp.abs(params["b"]).max() > 100, jnp.nan, network(params, x))

    @jax.jit
    def update(params, batch):
        return sampler.estimate(
            jax.random.key(0),
            lejax.SGLDState(far),
            params,
            value_fn=loss,
            batch=batch,
            tau=TAU,
        )

    found, state, info = update(PARAMS, BATCH)
    assert info.nonfinite_fraction == 0.25
    assert np.abs(flat(found)).max() < 10
    assert np.abs(flat(jax.tree.map(jnp.subtract, state.position, PARAMS))).max() < 10


def test_inner_batches():
    """A chain on batches in turn: their stacked rows are seen."""
    batches = jnp.stack([BATCH[:1], NEXT[:1], BATCH[1:]])

    def run(**options):
        sampler = lejax.sgld(7, 0.2, inner_batches=True, **options)
        return sampler

    direct, _ = displacements(run(reduction=False), 8000, batch=batches)
    reduced, _ = displacements(run(sample_complement=True), 8000, batch=batches, seed=1)
    assert_same_mean(reduced, direct)
    assert_same_covariance(reduced, direct)
    report = lejax.reduction_report(network, PARAMS, batches, inner_batches=True)
    assert [leaf.reduced_shape for leaf in report.leaves] == [(2,), (2,), (3, 2)]


def test_rows_that_do_not_turn_count_once():
    """A kernel on rows of its own, not of the batches."""
    rows = jax.random.normal(jax.random.key(5), (2, INPUTS))

    def value_fn(w, shift):
        return jnp.mean(jnp.cos(rows @ w + shift))

    report = lejax.reduction_report(
        value_fn, PARAMS["w"], jnp.ones((4, 1)), inner_batches=True
    )
    assert report.leaves[0].reduced_shape == (2, HIDDEN)
    sampler = lejax.sgld(6, 0.2, inner_batches=True)
    step = jax.jit(lejax.step_fn(value_fn, sampler, TAU))
    moved = step(PARAMS["w"], jax.random.key(0), jnp.arange(4.0)[:, None])
    assert np.isfinite(moved).all()


@pytest.mark.slow
def test_sharing_a_draw_changes_neither_mean_nor_order_of_error():
    """Many numbers: the extra noise is 2 signs/d of the whole, here a tenth."""

    def value_fn(x):
        return jnp.sum(jnp.exp(x / 4)) / 8 + jnp.prod(jnp.tanh(x[:3] + 1))

    x = jnp.linspace(-1.0, 1.0, 100)

    def run(signs, seed):
        sampler = lejax.importance(80, signs_per_draw=signs)

        def step(key):
            return sampler.estimate(key, (), x, value_fn=value_fn, tau=0.2)[::2]

        return replicate(step, 4000, seed)

    alone, info = run(1, 0)
    shared, shared_info = run(5, 1)
    assert_same_mean(np.asarray(shared), np.asarray(alone))
    assert_same_mean(np.asarray(shared_info.objective), np.asarray(info.objective))
    ratio = shared.var(0).sum() / alone.var(0).sum()
    assert 0.9 < ratio < 1.25
    # The error of first order, before it is made larger for few and heavy weights.
    tail = np.maximum(shared_info.pareto_k - 0.2, 0)
    factor = 1 + 5 / shared_info.effective_sample_size + 1.5 * tail
    told = np.isfinite(shared_info.standard_error)
    assert told.mean() > 0.9
    error = (shared_info.standard_error / factor)[told]
    variance = shared_info.objective.var()
    assert_mean(error**2 - variance, 0, bias=0.1 * variance)
