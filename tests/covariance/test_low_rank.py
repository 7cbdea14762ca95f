"""Covariances of low rank plus diagonal."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.gaussians import dense, updated

import lejax
from lejax._covariance.low_rank import LowRank, isotropic_low_rank

SIZE, RANK = 12, 2


def example():
    """One that is not I, its parts as they should be."""
    rng = np.random.default_rng(1)
    basis, sketch = (
        np.linalg.qr(rng.normal(size=(SIZE, RANK)))[0].astype(np.float32)
        for _ in range(2)
    )
    scales = rng.uniform(0.5, 2, SIZE).astype(np.float32)
    return LowRank(*map(jnp.asarray, (scales, basis, np.float32([4.0, 0.2]), sketch)))


def test_what_it_is():
    root = example()
    basis, scales = np.asarray(root.basis), np.asarray(root.scales)
    inside = np.eye(SIZE) + basis @ np.diag([3.0, -0.8]) @ basis.T
    expected = inside * np.outer(scales, scales)
    like = jnp.zeros(SIZE)
    np.testing.assert_allclose(dense(root, like), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(root.variances(like), np.diag(expected), rtol=1e-5)
    log_det = np.linalg.slogdet(expected)[1] / 2
    np.testing.assert_allclose(root.log_determinant(like), log_det, rtol=1e-4)


def test_sums():
    """The diagonal and the columns of RMR, and of R⁻¹MR⁻¹."""
    root = example()
    u, v = jax.random.normal(jax.random.key(0), (2, 5, SIZE))
    c = jnp.linspace(-1, 2, 5)
    middle = np.einsum("n,ni,nj->ij", c, u, v)
    middle = (middle + middle.T) / 2
    basis = np.asarray(root.basis)
    for power, sums in ((0.5, root.products), (-0.5, root.bends)):
        turn = np.eye(SIZE) + basis @ np.diag(root.values**power - 1) @ basis.T
        expected = turn @ middle @ turn
        diagonal, columns = jax.jit(sums)(u, v, c)
        np.testing.assert_allclose(diagonal, np.diag(expected), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            columns, expected @ root.sketch, rtol=1e-4, atol=1e-5
        )


WIDE = 1e-9, 1e9


@functools.partial(jax.jit, static_argnames="power")
def stretched(root, sums, low, high, power=1):
    """The root that such sums make, and the share of its scales at a bound."""
    bounds = tuple(map(jnp.float32, WIDE))
    return root.stretched(root.factor(sums, low, high), power, bounds)


@jax.jit
def updated_by(root, excess):
    values, vectors = jnp.linalg.eigh((excess + excess.T) / 2)
    sums = root.products(vectors.T, vectors.T, values)
    root, _ = stretched(root, sums, 0.1, 10.0)
    return root, root_matrix(root)


def root_matrix(root):
    return jax.vmap(root.times, out_axes=1)(jnp.eye(SIZE))


def nearest(target, root, number=60):
    """Updates whose sums are those of a known covariance, without noise."""
    matrix = jax.jit(root_matrix)(root)
    for _ in range(number):
        inverse = np.linalg.inv(np.asarray(matrix, np.float64))
        excess = inverse @ target @ inverse.T - np.eye(SIZE)
        root, matrix = updated_by(root, excess.astype(np.float32))
    return root


def test_what_nothing_changes():
    """Without any news Σ stays, and (I + 0)⁻¹u is u, if Ω is where Σ is known."""
    root = example()
    root = root._replace(sketch=root.basis)
    u, none = jnp.linspace(-1, 2, SIZE), (jnp.zeros(SIZE), jnp.zeros((SIZE, RANK)))

    @jax.jit
    def solved(root, none, u):
        return root.solve(root.factor(none, 0.1, jnp.inf), u)

    np.testing.assert_allclose(solved(root, none, u), u, rtol=1e-4, atol=1e-5)
    for power in (1, -1):
        kept, bounded = stretched(root, none, 0.1, 10.0, power)
        np.testing.assert_allclose(dense(kept, u), dense(root, u), rtol=1e-3, atol=1e-4)
        assert bounded == 0


def test_how_much_an_update_changes():
    root = example()
    old = root.variances(jnp.zeros(SIZE))
    wide, wider = root.unit()
    for news in (1e6, -1e6):
        kept, _ = stretched(root, (news * wide, news * wider), 0.5, 2.0)
        ratio = kept.variances(jnp.zeros(SIZE)) / old
        assert (ratio < 5).all()
        assert (ratio > 0.01).all()


def divergence(target, found):
    """KL(N(0, target) ‖ N(0, found))."""
    ratio = np.linalg.solve(found, target)
    return (np.trace(ratio) - SIZE - np.linalg.slogdet(ratio)[1]) / 2


@pytest.mark.parametrize("strengths", [(9.0, 25.0), (-0.9, -0.7), (-0.8, 16.0)])
@pytest.mark.parametrize("seed", range(4))
def test_principal_factors(strengths, seed):
    """Of D(I + VΛVᵀ)D with as many columns: exactly if wide, else a local optimum."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(SIZE, RANK)))[0]
    scales = rng.uniform(0.3, 3, SIZE)
    target = np.eye(SIZE) + axes @ np.diag(strengths) @ axes.T
    target *= np.outer(scales, scales)
    start = isotropic_low_rank(
        jnp.zeros(SIZE), jnp.float32(1.0), RANK, jax.random.key(0)
    )
    found = dense(nearest(target, start), jnp.zeros(SIZE))
    if min(strengths) > 0:
        deviations = np.sqrt(np.diag(target))
        error = (found - target) / np.outer(deviations, deviations)
        assert np.abs(error).max() < 1e-3
    diagonal = np.diag(np.diag(target))
    assert divergence(target, found) < 0.8 * divergence(target, diagonal)


@pytest.mark.parametrize(
    "sampler", [lejax.importance(1000), lejax.pathwise(400)], ids=lambda s: s.name
)
def test_a_posterior_of_few_observations(sampler):
    """Two observations of twelve numbers: a diagonal prior, and two directions less."""
    rng = np.random.default_rng(5)
    operator = rng.normal(size=(RANK, SIZE))
    data, noise = rng.normal(size=RANK) * 3, 0.5
    prior = rng.uniform(0.5, 2, SIZE)
    truth = np.linalg.inv(operator.T @ operator / noise + np.diag(1 / prior))
    mean = truth @ operator.T @ data / noise

    def loss(u):
        misfit = jnp.asarray(operator, u.dtype) @ u - jnp.asarray(data, u.dtype)
        weighed = u**2 / jnp.asarray(prior, u.dtype)
        return jnp.sum(misfit**2) / (2 * noise) + jnp.sum(weighed) / 2

    run = functools.partial(
        updated,
        loss,
        jnp.zeros(SIZE),
        sampler,
        0.5,
        jax.random.key(0),
        number=300,
        temperature=1.0,
        beta=0.3,
    )
    found, state = run(covariance="low_rank", rank=RANK)
    np.testing.assert_allclose(found, mean, atol=2e-3)
    np.testing.assert_allclose(
        dense(state.covariance, found), truth, rtol=0.01, atol=0.01
    )
    # Which a diagonal has no room for.
    other = dense(run(covariance="diagonal")[1].covariance, found)
    assert np.abs(other - truth).max() > 0.1


def test_bad_ranks():
    tx = lejax.gaussian(
        lejax.importance(10), 0.1, key=jax.random.key(0), covariance="low_rank", rank=5
    )
    with pytest.raises(ValueError, match=r"rank must be at most .* 3, got 5"):
        tx.init(jnp.zeros(3))
    with pytest.raises(ValueError, match="rank must be an integer of at least 1"):
        lejax.gaussian(lejax.importance(10), 0.1, key=jax.random.key(0), rank=0)
