"""What a learnt Gaussian bears: failures, bounds, other dtypes, bad settings."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases.gaussians import SAMPLERS, STRUCTURES, both, crossed, dense, updated

import lejax

FIFTY = {"importance": lejax.importance(50), "pathwise": lejax.pathwise(50)}


@pytest.mark.parametrize("name", FIFTY)
def test_nothing_moves_where_all_losses_fail(name):
    start = jnp.array([0.5, -0.5])
    for bad in (jnp.nan, jnp.inf):
        x, state = updated(
            lambda x, bad: jnp.sum(x) * bad,
            start,
            FIFTY[name],
            0.3,
            jax.random.key(0),
            number=3,
            batch=bad,
            covariance="full",
        )
        np.testing.assert_array_equal(x, start)
        np.testing.assert_allclose(dense(state.covariance, x), 0.3 * np.eye(2))


@pytest.mark.parametrize("name", FIFTY)
def test_where_some_losses_fail_all_is_finite(name):
    def some(x):
        return jnp.where(x[0] > 0.6, jnp.nan, jnp.sum(x**2) + jnp.sum(x))

    start = jnp.array([0.5, -0.5])
    x, state = updated(
        some,
        start,
        FIFTY[name],
        0.3,
        jax.random.key(0),
        number=30,
        covariance="full",
    )
    assert jnp.isfinite(x).all()
    assert np.isfinite(dense(state.covariance, x)).all()
    assert jax.jit(some)(x) < jax.jit(some)(start)


def test_draws_that_fail_teach_no_curvature():
    """A linear loss that is not defined on one side has none."""
    slope = jnp.array([2.0, 1.0])
    _, state = updated(
        lambda x: jnp.where(x[0] > 0, slope @ x, jnp.nan),
        jnp.zeros(2),
        lejax.pathwise(20_000),
        1.0,
        jax.random.key(0),
        beta=0.2,
        covariance="full",
    )
    np.testing.assert_allclose(
        dense(state.covariance, jnp.zeros(2)), np.eye(2), atol=1e-4
    )


def test_sums_that_overflow():
    """They teach nothing, and spoil nothing."""
    start = jnp.full(2, 1e-3)
    x, state = updated(
        lambda x: 1e37 * jnp.sum(x**2) / 2,
        start,
        lejax.pathwise(100),
        1.0,
        jax.random.key(0),
    )
    np.testing.assert_array_equal(x, start)
    np.testing.assert_array_equal(state.covariance.scales, 1.0)


CHANGES = {"pathwise": lejax.pathwise(100), "importance": lejax.importance(500)}


@crossed(
    ("low_rank", "pathwise", "double"),
    ("low_rank", "importance", "single"),
    ("full", "pathwise", "double"),
    ("diagonal", "importance", "single"),
    covariance={name: name for name in (*STRUCTURES, "low_rank")},
    sampler=CHANGES,
    precision={"single": jnp.float32, "double": jnp.float64},
)
def test_no_direction_changes_by_more(covariance, sampler, precision):
    """Generalised eigenvalues of Σ after an update and before, as conditions grow."""
    size, options = 6, {"rank": 3} if covariance == "low_rank" else {}
    with jax.enable_x64(precision == jnp.float64):
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]

        def loss(x, scales):
            return jnp.sum((scales * (turn.T.astype(precision) @ x)) ** 2) / 2

        tx = lejax.gaussian(
            sampler,
            1.0,
            key=jax.random.key(0),
            covariance=covariance,
            temperature=1.0,
            max_change=5.0,
            **options,
        )

        @jax.jit
        def run(scales):
            def update(carry, _):
                x, state = carry
                step, state = tx.update(None, state, x, value_fn=loss, batch=scales)
                return (x - step, state), state.covariance

            x = jnp.ones(size, precision)
            _, every = jax.lax.scan(update, (x, tx.init(x)), length=60)
            return tx.init(x).covariance, every

        for condition in (1e2, 1e4, 1e6):
            first, every = run(jnp.logspace(0, np.log10(condition) / 2, size))
            later = (jax.tree.map(lambda leaf, k=k: leaf[k], every) for k in range(60))
            roots = [first, *later]
            like = jnp.zeros(size, precision)
            found = np.array([dense(root, like) for root in roots], np.float64)
            for before, after in itertools.pairwise(found):
                inverse = np.linalg.inv(np.linalg.cholesky(before))
                ratios = np.linalg.eigvalsh(inverse @ after @ inverse.T)
                assert ratios.max() < 5 * (1 + 1e-3)
                assert ratios.min() > 1 / 5 / (1 + 1e-3)


@crossed(
    ("importance", "diagonal"),
    ("importance", "scale"),
    ("pathwise", "full"),
    sampler=SAMPLERS,
    covariance={name: name for name in STRUCTURES},
)
def test_bounds(sampler, covariance):
    """Of an update, and of the variances for ever."""
    start, loss = jnp.array([1.0, 2.0]), lambda x: 1e4 * jnp.sum(x**2)
    run = functools.partial(
        updated, loss, start, sampler, 1.0, jax.random.key(0), covariance=covariance
    )
    _, state = run(max_change=3.0)
    np.testing.assert_allclose(
        dense(state.covariance, start), np.eye(2) / 3, rtol=1e-4, atol=1e-6
    )
    x, state = run(bounds=(0.01, 5.0), number=20)
    np.testing.assert_allclose(
        dense(state.covariance, start), np.eye(2) / 100, rtol=1e-4, atol=1e-7
    )
    assert state.bounded == 1
    assert jnp.isfinite(x).all()


@both
def test_bounds_of_a_saddle(sampler):
    """Along it the variance grows until it may no longer."""
    start = jnp.zeros(2)
    _, state = updated(
        lambda x: x[0] ** 2 - x[1] ** 2,
        start,
        sampler,
        0.1,
        jax.random.key(0),
        number=40,
        covariance="full",
        bounds=(0.05, 2.0),
        beta=0.5,
    )
    values = np.linalg.eigvalsh(dense(state.covariance, start))
    np.testing.assert_allclose(values, [0.05, 2.0], rtol=1e-3)


def test_shares_at_a_bound_count_directions():
    _, state = updated(
        lambda p: 1e6 * p["a"] ** 2,
        {"a": jnp.zeros(()), "b": jnp.zeros(999)},
        lejax.pathwise(20),
        1.0,
        jax.random.key(0),
        bounds=(0.5, 2.0),
    )
    np.testing.assert_allclose(state.bounded, 1e-3, rtol=1e-5)


def test_no_step_is_longer_than_the_draws_reach():
    """By √c standard deviations, in the mean square over the directions."""
    steep = functools.partial(jnp.vdot, jnp.array([3e6, 4e6]))
    x, state = updated(
        steep, jnp.zeros(2), lejax.pathwise(10), 0.25, jax.random.key(0), max_change=4.0
    )
    np.testing.assert_allclose(jnp.sum(x**2), 4 * 2 * 0.25, rtol=1e-4)
    np.testing.assert_allclose(x[1] / x[0], 4 / 3, rtol=1e-4)
    assert (x < 0).all()
    assert state.bounded == 0


def test_the_mean_sees_the_whole_curvature():
    """x' = x/(1 + βΣf''), of which the variance takes a part alone."""
    x, _ = updated(
        lambda x: 1e4 * jnp.sum(x**2),
        jnp.array([0.1, 0.2]),
        lejax.pathwise(2000),
        1.0,
        jax.random.key(0),
        max_change=3.0,
    )
    assert jnp.linalg.norm(x) < 0.05


def test_large_sums_are_not_kept_by_groups():
    for size, known in ((100, True), (600, False)):
        _, state = updated(
            jnp.sum,
            jnp.zeros(size),
            lejax.importance(100),
            1e-4,
            jax.random.key(0),
            covariance="full",
        )
        assert jnp.isfinite(state.info.signal_standard_error) == known


@pytest.mark.parametrize(
    "covariance",
    [pytest.param("scale", marks=pytest.mark.slow), "diagonal", "full", "low_rank"],
)
def test_leaves_without_numbers_and_of_several_dtypes(covariance):
    with jax.enable_x64(True):
        params = {
            "a": jnp.ones(2, jnp.float32),
            "b": jnp.zeros(0),
            "c": jnp.ones((), jnp.float64),
        }
        x, state = updated(
            lambda p: jnp.sum(p["a"]).astype(jnp.float64) ** 2 + p["c"] ** 2,
            params,
            lejax.importance(40),
            0.1,
            jax.random.key(0),
            number=3,
            covariance=covariance,
            rank=1,
        )
        assert x["b"].shape == (0,)
        assert (x["a"] < 1).all()
        leaves = jax.tree.leaves(state.covariance)
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_masks_and_dtypes():
    """Only what the mask says is perturbed; half precision stays what it is."""
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "n": jnp.arange(3)}
    tx = lejax.gaussian(
        lejax.importance(40),
        0.1,
        key=jax.random.key(0),
        covariance="full",
        mask={"w": True, "n": False},
    )
    state = tx.init(params)
    assert state.covariance.root.shape == (6, 6)
    assert state.covariance.root.dtype == jnp.float32

    def value_fn(p):
        return jnp.sum(p["w"].astype(jnp.float32) ** 2)

    update = jax.jit(lambda s, p: tx.update(None, s, p, value_fn=value_fn))
    updates, state = update(state, params)
    assert updates["w"].dtype == jnp.bfloat16
    assert (updates["n"] == 0).all()
    assert (updates["w"] > 0).all()  # x - E_q X


def test_schedules():
    """β, T and ρ may be schedules of the number of updates."""
    loss, start = lambda x: jnp.sum(x**2), jnp.ones(2)
    run = functools.partial(
        updated, loss, start, lejax.importance(100), 1.0, jax.random.key(0), number=1
    )
    fixed, of_fixed = run(beta=0.3, temperature=0.5, covariance_rate=0.7)
    named = {"beta": 0.3, "temperature": 0.5, "covariance_rate": 0.7}
    found, of_found = run(**{k: optax.constant_schedule(v) for k, v in named.items()})
    np.testing.assert_allclose(found, fixed, rtol=1e-6)
    np.testing.assert_allclose(
        of_found.covariance.scales, of_fixed.covariance.scales, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"covariance": "dense"}, "covariance"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 2.0, "beta": 1.0}, r"beta.*1/temperature = 0.5"),
        ({"covariance_rate": 0.0}, "covariance_rate"),
        ({"covariance_rate": 1.5}, "covariance_rate"),
        ({"max_change": 1.0}, "max_change"),
        ({"bounds": (1.0, 2.0)}, r"bounds.*tau=0.1"),
        ({"bounds": 3.0}, "bounds"),
        ({"beta": 0.0}, "beta"),
    ],
)
def test_bad_settings(options, match):
    with pytest.raises(ValueError, match=match):
        lejax.gaussian(lejax.importance(10), 0.1, key=jax.random.key(0), **options)


@pytest.mark.parametrize(
    "sampler",
    [
        lejax.sgld(5, 0.1),
        lejax.score_function(10),
        lejax.importance(10, shaping="ranks"),
    ],
    ids=lambda sampler: sampler.name,
)
def test_other_samplers_are_refused(sampler):
    with pytest.raises(ValueError, match=r"can learn a covariance.*without shaping"):
        lejax.gaussian(sampler, 0.1, key=jax.random.key(0))
    with pytest.raises(TypeError, match="sampler must be a lejax sampler"):
        lejax.gaussian(sampler.estimate, 0.1, key=jax.random.key(0))


def test_large_matrices_are_refused():
    tx = lejax.gaussian(
        lejax.importance(10), 0.1, key=jax.random.key(0), covariance="full"
    )
    with pytest.raises(ValueError, match=r"covariance='full'.*got 3000"):
        tx.init(jnp.zeros(3000))
