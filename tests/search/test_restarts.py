"""When a run ends, and where the next begins."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.searches import search, sphere

import lejax
from lejax._search.stopping import history_size, no_gain, stalled

pytestmark = pytest.mark.runs
KEY = jax.random.key(2)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def two_wells(x):
    """A wide well of value 1 at 0, and a narrow one of value 0 at 3."""
    return jnp.minimum(1 + 0.05 * sphere(x), 4 * sphere(x - 3))


def test_restarts_leave_the_wrong_well():
    """Without them the search ends where it began."""
    bounds = {"lower": -1.0, "upper": 4.0}
    first = jnp.full(3, -0.5)
    alone = lejax.search_rule(**bounds)
    stuck, _ = search(alone, two_wells, alone.init(KEY, first, 0.3), 400)
    assert float(stuck.best_value) == pytest.approx(1)
    assert stuck.stalled
    assert stuck.num_restarts == 0
    rule = lejax.search_rule(max_population=64, **bounds)
    last, states = search(rule, two_wells, rule.init(KEY, first, 0.3), 1500)
    assert last.best_value < 1e-8
    begins = np.flatnonzero(np.diff(states.num_restarts)) + 1
    sizes = [8, *np.asarray(states.population[begins])]
    assert sizes[:4] == [8, 16, 32, 64]
    assert all(size == 64 for size in sizes[4:])
    np.testing.assert_array_equal(states.stalled[begins], True)
    assert (states.scale[begins] == 0.3).all()
    assert ((states.mean[begins] >= -1) & (states.mean[begins] <= 4)).all()
    np.testing.assert_array_equal(states.root[begins[0]], np.eye(3))
    assert (np.diff(states.best_value) <= 0).all()


def test_every_evaluation_is_counted():
    rule = lejax.search_rule(max_population=32)
    first = rule.init(KEY, jnp.zeros(3), 0.3)
    last, states = search(rule, lambda x: 0 * x.sum(), first, 200)
    sizes = [int(first.population), *np.asarray(states.population[:-1])]
    assert last.num_restarts > 2
    assert last.num_evaluations == sum(sizes)


def test_the_history_of_a_run():
    rule = lejax.search_rule(max_population=16)
    state = rule.init(KEY, jnp.ones(3), 0.3)
    tell, least = jax.jit(rule.tell), []
    for number in range(9):
        losses = np.square(rule.ask(state)).sum(1)
        losses[number % 8] = np.nan
        least.append(np.nanmin(losses[:8]))
        state = tell(state, losses)
    np.testing.assert_array_equal(state.history[-9:], least)
    assert np.isinf(state.history[:-9]).all()
    failed = tell(state, np.full(16, np.nan))
    assert failed.history[-1] == np.inf


def test_points_of_restarts_without_a_box():
    """Within two scales of the first mean, and on their side of a single bound."""
    rule = lejax.search_rule(max_population=8, population=4, lower=0.0)
    first = rule.init(KEY, jnp.full(3, 1.0), 2.0)
    last, states = search(rule, lambda x: 0 * x.sum(), first, 3000)
    begins = np.flatnonzero(np.diff(states.num_restarts)) + 1
    assert last.num_restarts > 50
    found = np.asarray(states.mean[begins])
    # Uniform in [-3, 5], with the part below 0 reflected.
    assert 0 <= found.min() < 0.5 < 4.5 < found.max() <= 5
    assert np.mean(found < 3) == pytest.approx(0.75, abs=0.1)


def test_restarts_compile_nothing():
    rule = lejax.search_rule(max_population=64)
    ask, tell = jax.jit(rule.ask), jax.jit(rule.tell)
    state = rule.init(KEY, jnp.zeros(3), 0.3)
    for _ in range(150):
        state = tell(state, np.zeros(ask(state).shape[0]))
    assert state.num_restarts >= 3
    assert (ask._cache_size(), tell._cache_size()) == (1, 1)


def test_all_failed_for_long():
    rule = lejax.search_rule(max_population=16)
    last, _ = search(
        rule, lambda x: jnp.nan * x[0], rule.init(KEY, jnp.ones(3), 1.0), 60
    )
    assert last.num_restarts >= 1
    assert np.isinf(last.best_value)
    np.testing.assert_array_equal(last.best_x, 1)


ENDS = jax.jit(stalled, static_argnums=6)


def called(history, losses, deviation=1.0, condition=1.0, dtype=jnp.float64):
    """The rule with five parameters and ten points."""
    size = history_size(5, 10)
    kept = np.full(size, np.inf)
    count = min(size, len(history))
    kept[size - count :] = history[-count:]
    numbers = [jnp.asarray(x, dtype) for x in (kept, losses, deviation, condition)]
    length, population = jnp.array([len(history), 10], jnp.int32)
    return bool(ENDS(numbers[0], length, numbers[1], population, *numbers[2:], 5))


FALLING = np.exp(-0.1 * np.arange(200))
LOSSES = np.arange(10) + 1.0


def test_a_run_that_goes_well_does_not_end():
    for length in (1, 9, 10, 26, 100, 135, 140, 150, 200):
        assert not called(FALLING[:length], LOSSES)


@pytest.mark.parametrize("unit", [1e-200, 1.0, -1e200])
def test_flat_losses(unit):
    """10 + 30d/J = 25 updates, to the rounding of the dtype."""
    level = unit * (1 + 1e-14 * np.arange(10))
    flat = np.full(26, level[0])
    assert called(flat, level)
    assert not called(flat[:25], level)
    assert not called(flat, unit * LOSSES)
    assert not called(np.append(unit * 2, flat[:24]), level)
    assert not called(flat * (1 - 1e-10 * np.arange(26)), level)
    coarse = (1 + 1e-6 * np.arange(10)) * np.sign(unit)
    assert called(np.full(26, coarse[0]), coarse, dtype=jnp.float32)


def test_the_ends_of_scale_and_shape():
    assert called(FALLING, LOSSES, deviation=1e-12)
    assert not called(FALLING, LOSSES, deviation=1e-11)
    assert called(FALLING, LOSSES, condition=1.1e14)
    assert not called(FALLING, LOSSES, condition=0.9e14)
    assert called(FALLING, LOSSES, deviation=5e-6, dtype=jnp.float32)
    assert called(FALLING, LOSSES, condition=2e5, dtype=jnp.float32)


def plain_rule_of_medians(history, d=5, count=10):
    """As Hansen's tutorial has it, with a window of at most what is kept."""
    length = len(history)
    if length < 120 + 30 * d / count or length % 10:
        return False
    window = min(length, int(120 + 0.2 * length + 30 * d / count), 527)
    part = max(10, window * 3 // 10)
    recent = history[-window:]
    return np.median(recent[-part:]) >= np.median(recent[:part])


def test_medians_that_do_not_fall():
    rng = np.random.default_rng(0)
    noisy = np.cumsum(rng.normal(-0.02, 1, 5000))
    size = history_size(5, 10)
    assert size == 527
    ends = np.unique(rng.integers(1, 500, 60) * 10)
    kept = np.full((len(ends), size), np.inf)
    for row, length in zip(kept, ends, strict=True):
        row[-min(size, length) :] = noisy[:length][-size:]
    found = jax.vmap(no_gain, (0, 0, None))(
        jnp.asarray(kept), jnp.asarray(ends, jnp.int32), jnp.asarray(15.0)
    )
    wanted = [plain_rule_of_medians(noisy[:length]) for length in ends]
    assert 5 < sum(wanted) < 55
    np.testing.assert_array_equal(found, wanted)
    assert not no_gain(
        jnp.asarray(kept[0]), jnp.asarray(131, jnp.int32), jnp.asarray(15.0)
    )
