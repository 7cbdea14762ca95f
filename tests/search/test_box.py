"""Searches inside a box, with a minimum inside or at a bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.searches import search, sphere

import lejax
from lejax._search.box import reflect

KEY = jax.random.key(1)
INF = np.inf


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def by_hand(x, low, high):
    """Mirror at a bound until inside, and count."""
    sign = 1
    while not low <= x <= high:
        x = 2 * low - x if x < low else 2 * high - x
        sign = -sign
    return x, sign


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 2.0), (-INF, 2.0), (-1.0, INF), (-INF, INF), (3.0, 3.5)]
)
def test_reflections(low, high):
    x = np.random.default_rng(0).normal(0, 6, 300)
    points, signs = reflect(jnp.asarray(x), jnp.asarray(low), jnp.asarray(high))
    wanted = [by_hand(each, low, high) for each in x]
    np.testing.assert_allclose(points, [w[0] for w in wanted], atol=1e-12)
    np.testing.assert_array_equal(signs, [w[1] for w in wanted])
    inside = (x >= low) & (x <= high)
    np.testing.assert_array_equal(points[inside], x[inside])
    assert ((points >= low) & (points <= high)).all()


@pytest.mark.runs
def test_a_minimum_at_the_bounds():
    """At a corner in some parameters, in the open in another, far out without a box."""
    lower, upper = np.array([0.1, -3.0, -1.0, -INF]), np.array([2.0, 0.7, 1.0, 5.0])
    rule = lejax.search_rule(max_population=64, lower=lower, upper=upper)

    def loss(x):
        return 3 * x[0] - x[1] + jnp.square(x[2] - 0.3) + jnp.square(x[3] - 9)

    first = rule.init(KEY, jnp.array([1.0, -1.0, 0.0, 0.0]), 0.5)
    last, states = search(rule, loss, first, 600)
    assert float(last.best_value) == pytest.approx(15.6, rel=1e-10)
    np.testing.assert_allclose(last.best_x, [0.1, 0.7, 0.3, 5], atol=1e-5)
    assert ((states.mean >= lower) & (states.mean <= upper)).all()
    points = rule.ask(first)
    assert ((points >= lower) & (points <= upper)).all()
    assert ((states.best_x >= lower) & (states.best_x <= upper)).all()


def test_a_reflected_mean_takes_the_gaussian_with_it():
    """What a search on the mirror images would do, seen in the mirror."""
    box, free = lejax.search_rule(lower=0.0), lejax.search_rule()
    state, _ = search(
        free, lambda x: sphere(x * x.sum()), free.init(KEY, jnp.ones(3), 0.1), 8
    )
    state = state._replace(mean=jnp.array([0.01, 0.9, 0.02]))
    losses = free.ask(state).sum(1)
    found, plain = jax.jit(box.tell)(state, losses), jax.jit(free.tell)(state, losses)
    sign = np.sign(plain.mean)
    assert set(sign) == {-1, 1}
    np.testing.assert_allclose(found.mean, sign * plain.mean, rtol=1e-9)
    np.testing.assert_allclose(found.root, sign * plain.root * sign[:, None], rtol=1e-9)
    np.testing.assert_allclose(found.scale_path, sign * plain.scale_path, rtol=1e-9)
    np.testing.assert_allclose(found.shape_path, sign * plain.shape_path, rtol=1e-9)


def test_a_box_that_is_never_left_changes_nothing():
    wide, free = lejax.search_rule(lower=-100, upper=100), lejax.search_rule()
    found, _ = search(wide, sphere, wide.init(KEY, jnp.ones(3), 0.1), 20)
    plain, _ = search(free, sphere, free.init(KEY, jnp.ones(3), 0.1), 20)
    np.testing.assert_allclose(found.mean, plain.mean, rtol=1e-6)


def test_bounds_may_be_traced():
    @jax.jit
    def points(lower):
        rule = lejax.search_rule(lower=lower, upper=lower + 1)
        return rule.ask(rule.init(KEY, lower + 0.5, 1.0))

    found = points(jnp.array([3.0, 5.0]))
    assert ((found >= jnp.array([3.0, 5.0])) & (found <= jnp.array([4.0, 6.0]))).all()
