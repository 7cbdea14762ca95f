"""The streaming accumulator: merging, overflow, and the errors that it reports."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.problems import assert_mean, replicate

import lejax
from lejax._estimators import accumulator
from lejax._estimators.draws import Draws
from lejax._estimators.weights import estimate
from lejax._internal.random import standard_normals

DIMENSION = 3


def draws(key, log_weight, units=16, pairs=True, valid=None, copies=1):
    """Draws of `units` units whose log-weights are `log_weight(displacement)`."""
    displacements = jax.vmap(
        lambda key: standard_normals(key, jnp.zeros(DIMENSION), copies)
    )(jax.random.split(key, units))
    signs = jnp.array([1.0, -1.0]) if pairs else jnp.array([1.0])
    evaluate = jax.vmap(jax.vmap(jax.vmap(log_weight)))
    outputs = evaluate(signs[:, None, None, None] * displacements)
    valid = jnp.ones(units, bool) if valid is None else valid
    numbers = jnp.arange(outputs.size).reshape(outputs.shape)
    return Draws(displacements, signs, outputs, valid[:, None], numbers)


@functools.partial(jax.jit, static_argnames="pairs")
def _chunk(key, offset, pairs):
    return accumulator.summarise(
        draws(key, lambda u: u.sum() + u[0] ** 2 + offset, pairs=pairs)
    )


def chunk(seed, offset=0.0, pairs=True):
    return _chunk(jax.random.key(seed), float(offset), pairs)


merge, summarise = jax.jit(accumulator.merge), jax.jit(accumulator.summarise)


@jax.jit
def in_one_piece(acc):
    return estimate(acc, None)._replace(norm_error=jnp.zeros(()))


def assert_same(a, b, rtol=2e-5):
    """Two accumulators say the same, to rounding."""
    a, b = in_one_piece(a), in_one_piece(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())


@pytest.mark.parametrize("offsets", [(0, 0, 0), (0, 50, -50), (1e4, -1e4, 0)])
def test_merge_is_associative_and_commutative(offsets):
    a, b, c = (chunk(i, o, pairs=i != 1) for i, o in enumerate(offsets))
    assert_same(merge(a, b), merge(b, a), rtol=1e-6)
    assert_same(merge(merge(a, b), c), merge(a, merge(b, c)))
    empty = accumulator.empty(jnp.zeros(DIMENSION), jnp.float32)
    assert_same(merge(a, empty), a, rtol=0)


def test_one_chunk_equals_two_merged():
    whole = draws(jax.random.key(0), lambda u: 3 * u.sum())
    halves = [
        whole._replace(
            displacements=whole.displacements[s],
            outputs=whole.outputs[:, s],
            valid=whole.valid[s],
        )
        for s in (slice(0, 5), slice(5, 16))
    ]
    merged = merge(*map(summarise, halves))
    assert_same(merged, summarise(whole))


@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-9), (False, 3e-3)])
def test_large_log_weights_neither_overflow_nor_lose_the_answer(offset, x64, tolerance):
    """In float32 log-weights of 1e4 are themselves rounded to 1e-3."""
    with jax.enable_x64(x64):
        truth = in_one_piece(chunk(0))
        shifted = in_one_piece(chunk(0, offset))
        log_mean = float(shifted.log_mean) - offset
    for leaf in jax.tree.leaves(shifted):
        assert np.isfinite(leaf).all()
    np.testing.assert_allclose(shifted.displacement, truth.displacement, atol=tolerance)
    np.testing.assert_allclose(log_mean, truth.log_mean, atol=tolerance)
    np.testing.assert_allclose(
        shifted.effective_sample_size, truth.effective_sample_size, rtol=tolerance
    )


def test_units_that_only_fill_up_change_nothing():
    valid = jnp.arange(16) < 11
    whole = draws(jax.random.key(0), lambda u: u.sum(), valid=valid)
    part = whole._replace(
        displacements=whole.displacements[:11],
        outputs=whole.outputs[:, :11],
        valid=whole.valid[:11],
    )
    assert_same(summarise(whole), summarise(part))


@pytest.mark.parametrize(
    ("pairs", "copies", "slope"),
    [
        (True, 1, 0.3),
        (True, 1, 1.0),
        (False, 1, 0.3),
        (False, 1, 1.0),
        pytest.param(True, 4, 1.0, marks=pytest.mark.slow),
        pytest.param(True, 4, 0.3, marks=pytest.mark.slow),
    ],
)
def test_reported_errors_are_those_of_replicates(pairs, copies, slope):
    """The squared error of δ̂ and the standard error of F: odd, even and skewed."""

    def estimate(key, slope):
        def log_weight(u):
            return -slope * (u[0] + 0.5 * u[1] ** 2 + 0.3 * jnp.exp(-u[2]))

        return in_one_piece(
            accumulator.summarise(draws(key, log_weight, 512, pairs, None, copies))
        )

    found = replicate(estimate, 4000, given=(slope,))
    # Both formulas are of first order in 1/J: allow what they neglect.
    squared_deviation = ((found.displacement - found.displacement.mean(0)) ** 2).sum(1)
    assert_mean(
        found.squared_error - squared_deviation, 0, bias=0.02 * squared_deviation.mean()
    )
    squared_deviation = (found.log_mean - found.log_mean.mean()) ** 2
    assert_mean(
        found.log_mean_error**2 - squared_deviation,
        0,
        bias=0.02 * squared_deviation.mean(),
    )


@pytest.mark.parametrize("pairs", [True, False])
def test_errors_of_few_units_are_exact(pairs):
    """Against the weights themselves: P units, their spread with P - 1."""
    few = draws(jax.random.key(0), lambda u: u.sum(), 4, pairs)
    weights = np.exp(np.asarray(few.outputs, np.float64))[..., 0]
    displacements = few.displacements[:, 0]
    units = weights.sum(0)
    found = in_one_piece(summarise(few))
    np.testing.assert_allclose(found.log_mean, np.log(weights.mean()), rtol=1e-5)
    np.testing.assert_allclose(
        found.log_mean_error, units.std(ddof=1) / np.sqrt(4) / units.mean(), rtol=1e-4
    )
    signed = np.asarray(few.signs) @ weights
    np.testing.assert_allclose(
        found.displacement, signed @ displacements / units.sum(), rtol=1e-4
    )
    residual = signed[:, None] * displacements - units[:, None] * found.displacement
    truth = 4 / 3 * (residual**2).sum() / units.sum() ** 2
    np.testing.assert_allclose(found.squared_error, truth, rtol=1e-4)


def test_the_variance_where_the_loss_does_not_see():
    """Of δ̂ along a direction without influence, given the weights: ΣD²/S²."""

    def estimate(key):
        found = draws(key, lambda u: 1.5 * u[0], 8, copies=2)
        return in_one_piece(accumulator.summarise(found))

    found = replicate(estimate, 4000)
    assert_mean(found.displacement[:, 2] ** 2 - found.squared_weights, 0)


def test_copies_of_a_draw_are_standard_normal_and_uncorrelated():
    like = {"a": jnp.zeros((2, 1)), "b": jnp.zeros(3)}
    found = replicate(lambda key: standard_normals(key, like, 5), 20_000)
    copies = np.concatenate([found["a"][..., 0], found["b"]], -1).astype(np.float64)
    flat = copies.reshape(len(copies), -1)
    assert_mean(flat, 0)
    assert_mean(flat[:, :, None] * flat[:, None], np.eye(25), sigmas=5)  # 625 of them
    assert_mean(flat**4, 3)
    # They share their numbers, but not their signs.
    np.testing.assert_array_equal(np.abs(copies), np.abs(copies[:, :1]).repeat(5, 1))


def test_an_odd_sample_out_is_a_unit_of_half_the_size():
    """Equal losses have no error, although the units' weights differ."""

    def log_weight(u):
        return 0 * u.sum()

    merged = merge(
        summarise(draws(jax.random.key(0), log_weight, 2)),
        summarise(draws(jax.random.key(1), log_weight, 1, pairs=False)),
    )
    assert merged.moments.size == 5
    assert merged.moments.size_square == 4 + 4 + 1
    assert in_one_piece(merged).log_mean_error == 0


def test_a_single_unit_has_no_standard_error():
    one = summarise(draws(jax.random.key(0), lambda u: u.sum(), 1))
    assert np.isnan(in_one_piece(one).log_mean_error)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize(
    "num_samples",
    [1, *(pytest.param(number, marks=pytest.mark.slow) for number in (7, 64)), 101],
)
def test_chunk_size_changes_nothing_but_rounding(antithetic, num_samples):
    def f(x):
        return jnp.sum(jnp.sin(3 * x) + x**2)

    x = jnp.linspace(-1.0, 1.0, 5)

    def run(chunk_size):
        sampler = lejax.importance(
            num_samples, chunk_size=chunk_size, antithetic=antithetic
        )
        step = functools.partial(sampler.step, value_fn=f, tau=0.3, beta=1.7)
        return jax.jit(step)(jax.random.key(3), (), x)

    reference, _, info = run(1)
    assert info.num_evaluations == num_samples
    for chunk_size in (3, 10, None):
        displacement, _, other = run(chunk_size)
        np.testing.assert_allclose(displacement, reference, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other.objective, info.objective, rtol=1e-5)
        np.testing.assert_allclose(
            other.effective_sample_size, info.effective_sample_size, rtol=1e-5
        )
