"""Searches that run to their end, alone and many at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.searches import (
    ellipsoid,
    rosenbrock,
    search,
    sphere,
)

import lejax

pytestmark = pytest.mark.runs
KEY = jax.random.key(0)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("loss", "d", "evaluations"),
    [
        (sphere, 5, 900),
        (sphere, 10, 1400),
        (ellipsoid, 5, 2200),
        (ellipsoid, 10, 5000),
        (rosenbrock, 5, 2500),
        (rosenbrock, 10, 7000),
    ],
)
def test_converges_to_1e8(loss, d, evaluations):
    """From three keys, each within so many evaluations."""
    rule = lejax.search_rule()
    start = jnp.zeros(d) if loss is rosenbrock else jnp.full(d, 0.8)
    updates = evaluations // int(rule.init(KEY, start, 0.5).population)

    @jax.jit
    @jax.vmap
    def run(key):
        return search(rule, loss, rule.init(key, start, 0.5), updates)[0].best_value

    assert run(jax.random.split(KEY, 3)).max() <= 1e-8


def test_single_precision():
    """It ends at the spacing of float32 about the minimum, and keeps its dtypes."""
    rule = lejax.search_rule()
    first = rule.init(KEY, jnp.zeros(5), 0.5)
    scales = 10 ** jnp.arange(5.0)

    def loss(x):
        return (scales * jnp.square(x - 1)).sum()

    last, _ = search(rule, loss, first, 400)
    assert last.best_x.dtype == last.root.dtype == jnp.float32
    np.testing.assert_allclose(last.best_x, 1, atol=1e-6)
    assert all(np.isfinite(field).all() for field in last[:5])


def test_states_keep_their_types():
    """No weak types or promotions: `scan` would refuse them."""
    rule = lejax.search_rule(max_population=32, lower=-1, upper=jnp.ones(3))
    first = rule.init(KEY, jnp.zeros(3), 0.5)
    assert jax.eval_shape(rule.ask, first).shape == (32, 3)
    after = jax.eval_shape(rule.tell, first, jnp.zeros(32))
    described = jax.eval_shape(lambda state: state, first)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), after) == (
        jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), described)
    )


def test_a_state_may_be_donated():
    rule = lejax.search_rule()
    mean, scale = jnp.zeros(3), jnp.array(0.5)
    state = rule.init(KEY, mean, scale)
    jax.jit(rule.tell, donate_argnums=0)(state, jnp.arange(8.0))
    assert not any(x.is_deleted() for x in (KEY, mean, scale))


def test_points_depend_on_the_state_alone():
    rule = lejax.search_rule(max_population=16)
    state = rule.init(KEY, jnp.zeros(3), 0.5)
    points = rule.ask(state)
    np.testing.assert_array_equal(rule.ask(state), points)
    after = rule.tell(state, jnp.square(points).sum(1))
    assert not np.isin(rule.ask(after), points).any()
    assert (int(state.population), int(after.num_evaluations)) == (8, 8)


def test_padding_is_ignored():
    rule = lejax.search_rule(max_population=16)
    state = rule.init(KEY, jnp.zeros(3), 0.5)
    losses = jnp.square(rule.ask(state)).sum(1)
    tell = jax.jit(rule.tell)
    plain = tell(state, losses.at[8:].set(jnp.nan))
    other = tell(state, losses.at[8:].set(-1.0))
    for found, wanted in zip(plain, other, strict=True):
        if found.dtype != KEY.dtype:
            np.testing.assert_array_equal(found, wanted)
    best = int(losses[:8].argmin())
    np.testing.assert_allclose(plain.best_x, rule.ask(state)[best], rtol=1e-6)
    assert float(plain.best_value) == float(losses[best])


@pytest.mark.usefixtures("double")
def test_failed_losses_count_as_the_worst():
    """Half of the space fails, in three ways; the minimum is at its edge."""
    rule = lejax.search_rule()

    def loss(x):
        bad = jnp.array([jnp.nan, jnp.inf, -jnp.inf])[(100 * x[1]).astype(int) % 3]
        return jnp.where(x[0] < 0, bad, sphere(x))

    last, states = search(rule, loss, rule.init(KEY, jnp.full(5, 0.8), 0.5), 400)
    assert 0 <= last.best_value < 1e-8
    assert np.isfinite(states.mean).all()
    assert np.isfinite(states.root).all()


def test_when_all_losses_fail_the_gaussian_stays():
    rule = lejax.search_rule()
    state, _ = search(rule, rosenbrock, rule.init(KEY, jnp.zeros(5), 0.5), 9)
    after = jax.jit(rule.tell)(state, jnp.full(8, jnp.nan))
    for name in ("mean", "scale", "root", "scale_path", "shape_path", "best_x"):
        np.testing.assert_array_equal(getattr(after, name), getattr(state, name))
    assert int(after.num_evaluations - state.num_evaluations) == 8
    assert not np.isin(rule.ask(after), rule.ask(state)).any()


@pytest.mark.usefixtures("double")
def test_twenty_searches_at_once():
    """They equal those one by one, to the rounding of another program."""
    rule = lejax.search_rule(max_population=16)
    keys = jax.random.split(KEY, 20)

    @jax.jit
    def run(key):
        first = rule.init(key, jnp.zeros(4), 0.5)
        return search(rule, rosenbrock, first, 30)[0]

    found = jax.jit(jax.vmap(run))(keys)
    for number, key in enumerate(keys):
        alone = run(key)
        for name in ("mean", "scale", "root", "best_x", "best_value"):
            np.testing.assert_allclose(
                getattr(found, name)[number], getattr(alone, name), 1e-6, 1e-9
            )


def test_one_parameter():
    rule = lejax.search_rule(lower=0)
    last, _ = search(
        rule, lambda x: sphere(x - 3), rule.init(KEY, jnp.ones(1), 1.0), 60
    )
    assert float(last.best_x[0]) == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"population": 7}, "population must be even.* got 7; pass population=8"),
        ({"population": 2}, "population must be an integer of at least 4, got 2"),
        ({"population": True}, "population must be an integer of at least 4, got True"),
        ({"max_population": 33}, "max_population must be even.* got 33"),
        (
            {"population": 20, "max_population": 10},
            "max_population must be at least the population, 20, got 10; pass",
        ),
        ({"max_change": 1}, "max_change must be above 1, got 1"),
        ({"lower": 1, "upper": 0}, "lower must be below upper.* got lower=1 and"),
        ({"lower": np.zeros(2), "upper": np.ones(3)}, "lower must be below upper"),
        ({"lower": "a"}, "lower must be a number or a vector, without NaN, got 'a'"),
        ({"upper": np.nan}, "upper must be a number or a vector, without NaN, got nan"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        lejax.search_rule(**settings)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"key": 3}, TypeError, "key must be a typed key, got 3; pass"),
        ({"scale": 0.0}, ValueError, "scale must be a positive finite number, got 0.0"),
        ({"mean": np.zeros(2, int)}, ValueError, "mean must be of float32 or float64"),
        ({"mean": np.zeros((2, 2))}, ValueError, r"mean must be a vector.* \(2, 2\)"),
        ({"mean": np.zeros(0)}, ValueError, r"mean must be a vector.* \(0,\)"),
        ({"mean": np.array([0, 5.0])}, ValueError, r"got mean\[1\] = 5 with lower -1"),
        ({"mean": np.array([np.nan, 0])}, ValueError, r"got mean\[0\] = nan"),
        ({"mean": np.zeros(3)}, ValueError, "lower must be a number or have the shape"),
    ],
)
def test_bad_first_states(changed, error, words):
    rule = lejax.search_rule(lower=np.array([-1, -1]), upper=2.0)
    given = {"key": KEY, "mean": np.zeros(2), "scale": 1.0} | changed
    with pytest.raises(error, match=words):
        rule.init(**given)


def test_bad_losses():
    rule = lejax.search_rule(max_population=16)
    state = rule.init(KEY, jnp.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"losses must have shape \(16,\).* \(8,\)"):
        rule.tell(state, jnp.zeros(8))
    few = lejax.search_rule(max_population=4)
    with pytest.raises(
        ValueError, match=r"max_population must be at least .* 8, got 4"
    ):
        few.init(KEY, jnp.zeros(3), 0.5)
