"""One update against its formulas in plain NumPy, and what it does not depend on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.searches import rosenbrock, search

import lejax
from lejax._search.selection import mean_size, select
from lejax._search.update import moved, pairs

FIELDS = ("mean", "scale", "root", "scale_path", "shape_path")


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def reference(x, sigma, root, p, p_c, t, u, losses, c=10.0):
    """An update as DESIGN.md has it; failed points have weight 0."""
    count, d = u.shape
    finite = np.isfinite(losses)
    ranks = np.array([(losses[finite] < y).sum() for y in losses]) / (finite.sum() - 1)
    w = np.where(finite, np.exp(-4 * ranks), 0)
    w = w / w.sum()
    e = 1 / (w**2).sum()
    m = w @ u
    mu = 1 / max(1 / e - (1 - 1 / e) / (count - 1), 1 / (2 * e))

    c_s = (mu + 2) / (d + mu + 5)
    d_s = 1 + 2 * max(0, np.sqrt((mu - 1) / (d + 1)) - 1) + c_s
    p = (1 - c_s) * p + np.sqrt(c_s * (2 - c_s) * mu) * m
    ratio = np.linalg.norm(p) / (np.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d)))
    small = ratio / np.sqrt(1 - (1 - c_s) ** (2 * t)) < 1.4 + 2 / (d + 1)

    c_c = (4 + mu / d) / (d + 4 + 2 * mu / d)
    p_c = (1 - c_c) * p_c + small * np.sqrt(c_c * (2 - c_c) * mu) * root @ m
    q = np.linalg.inv(root) @ p_c

    rho, c_1 = min(0.5, e / (d**1.5 + e)), 2 / ((d + 1.3) ** 2 + e)
    second = sum((w[j] - 1 / count) * np.outer(u[j], u[j]) for j in range(count))
    noise = 0.0
    for j in range(0, count, 2):  # pairs: e, -e
        residual = w[j] * u[j] + w[j + 1] * u[j + 1] - (w[j] + w[j + 1]) * m
        noise += residual @ residual / (1 - 2 / count)
    bracket = np.eye(d) + rho * second + c_1 * (np.outer(q, q) - np.eye(d))
    bracket -= rho**2 * (np.outer(m, m) - noise / d * np.eye(d))
    values, vectors = np.linalg.eigh(bracket)
    bracket = vectors @ np.diag(np.clip(values, 1 / c, c)) @ vectors.T
    values, vectors = np.linalg.eigh(root @ bracket @ root.T)
    size = np.linalg.det(root @ bracket @ root.T) ** (0.5 / d)
    new_root = vectors @ np.diag(np.sqrt(values)) @ vectors.T / size
    step = sigma * root @ m
    sigma = sigma * np.exp(min(1, c_s / d_s * (ratio - 1))) * size
    return x + step, sigma, new_root, p, p_c / size


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("d", [1, 4])
def test_against_the_formulas(d, failing):
    """Fifteen updates, half of the places being padding."""
    rule = lejax.search_rule(10, max_population=20, max_change=2.5)
    state = rule.init(jax.random.key(1), jnp.full(d, 0.7), 0.4)
    scales = np.logspace(0, 3, d)
    tell = jax.jit(rule.tell)
    for t in range(1, 16):
        points = np.asarray(rule.ask(state))[:10]
        before = [np.asarray(getattr(state, name)) for name in FIELDS]
        u = (points - before[0]) / before[1] @ np.linalg.inv(before[2])
        np.testing.assert_allclose(u[::2], -u[1::2], atol=1e-9)
        losses = (scales * points**2).sum(1)
        if failing:
            losses[t % 10], losses[(t + 3) % 10] = np.nan, np.inf
        wanted = reference(*before, t, u, losses, 2.5)
        state = tell(state, np.append(losses, 10 * [-7.0]))
        for name, value in zip(FIELDS, wanted, strict=True):
            found = getattr(state, name)
            np.testing.assert_allclose(found, value, rtol=1e-7, atol=1e-9, err_msg=name)
    assert float(jnp.linalg.det(state.root)) == pytest.approx(1)


def test_failures_lower_the_effective_sample_size():
    losses = jnp.arange(10.0)
    few = select(losses.at[::2].set(jnp.nan), jnp.array(10))
    assert few.effective_sample_size < select(losses, jnp.array(10))[3]
    np.testing.assert_array_equal(few.shares[::2], 0)
    np.testing.assert_array_equal(few.each, 0.1)


def test_the_effective_length_under_pairs():
    """The covariance of Σw̃u, by 10⁵ assignments of ranks to pairs."""
    for losses in (np.arange(10.0), np.array([0, 1, 2, *7 * [np.nan]]), np.zeros(10)):
        selection = select(jnp.asarray(losses), jnp.array(10))
        w = np.asarray(selection.shares)
        assigned = np.random.default_rng(0).permuted(np.tile(w, (100_000, 1)), axis=1)
        variance = np.square(assigned[:, ::2] - assigned[:, 1::2]).sum(1).mean()
        size = float(selection.effective_sample_size)
        wanted = 1 / max(variance, 0.5 / size)
        assert float(mean_size(selection)) == pytest.approx(wanted, rel=0.01)


def test_equal_losses_have_equal_weights():
    """So that on a plateau nothing but σ changes."""
    rule = lejax.search_rule()
    first = rule.init(jax.random.key(0), jnp.ones(3), 0.1)
    state, _ = search(rule, lambda x: 0 * x.sum(), first, 3)
    np.testing.assert_allclose(state.mean, first.mean, atol=1e-15)


@pytest.fixture(scope="module")
def developed():
    """The state, draws and losses of a search that has some shape."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        rule = lejax.search_rule()
        state = rule.init(jax.random.key(3), jnp.array([0.1, -0.4, 0.3, 0.8]), 0.5)
        state, _ = search(rule, rosenbrock, state, 25)
        u = pairs(jax.random.key(4), 8, 4, jnp.float64)
        points = state.mean + state.scale * u @ state.root
        return state, u, jax.vmap(rosenbrock)(points)


def test_rotation(developed):
    """Rotated draws of a rotated Gaussian: everything is rotated."""
    state, u, losses = developed
    axes = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (4, 4)))[0]
    selection = select(losses, state.population)
    plain = moved(state, u, selection, 10.0)
    turned = state._replace(
        mean=axes @ state.mean,
        root=axes @ state.root @ axes.T,
        scale_path=axes @ state.scale_path,
        shape_path=axes @ state.shape_path,
    )
    found = moved(turned, u @ axes.T, selection, 10.0)
    np.testing.assert_allclose(found.mean, axes @ plain.mean, rtol=1e-9)
    np.testing.assert_allclose(found.scale, plain.scale, rtol=1e-9)
    np.testing.assert_allclose(found.root, axes @ plain.root @ axes.T, atol=1e-9)
    np.testing.assert_allclose(found.shape_path, axes @ plain.shape_path, atol=1e-9)


START = np.array([0.5, -1.0, 2.0])
RULE = lejax.search_rule(max_population=32)
ASK, TELL = jax.jit(RULE.ask), jax.jit(RULE.tell)


def bowl(points):
    return (np.array([1, 1e3, 1e6]) * points**2).sum(-1)


def state_of(loss, mean, scale, updates=40):
    """With losses on the host: the same program, so the same rounding."""
    state = RULE.init(jax.random.key(6), mean, scale)
    for _ in range(updates):
        state = TELL(state, loss(np.asarray(ASK(state))))
    return state


def assert_equal(found, wanted, *names):
    for name in names:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("monotone", [np.log1p, lambda y: y**3 - 7, np.sqrt])
def test_monotone_transformations_of_the_loss(monotone):
    plain = state_of(bowl, START, 0.5)
    other = state_of(lambda x: monotone(bowl(x)), START, 0.5)
    assert_equal(other, plain, *FIELDS, "best_x")


def test_units_of_the_loss_through_restarts():
    """Stop rules are relative: in other units runs end at the same updates."""
    plain = state_of(bowl, START, 0.5, 600)
    other = state_of(lambda x: 2.0**40 * bowl(x), START, 0.5, 600)
    assert plain.num_restarts > 0
    assert_equal(other, plain, *FIELDS, "best_x", "num_restarts", "population")


def test_units_of_the_parameters_through_restarts():
    plain = state_of(bowl, START, 0.5, 600)
    other = state_of(lambda x: bowl(x * 2.0**20), START / 2**20, 0.5 / 2**20, 600)
    assert plain.num_restarts > 0
    scaled = {x: getattr(other, x) * 2.0**20 for x in ("mean", "scale", "best_x")}
    assert_equal(other._replace(**scaled), plain, *FIELDS, "best_x", "num_restarts")


def test_translation():
    shift = np.array([3.0, -8.0, 0.25])
    plain = state_of(bowl, START, 0.5)
    other = state_of(lambda x: bowl(x - shift), START + shift, 0.5)
    np.testing.assert_allclose(other.mean - shift, plain.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(other.root, plain.root, rtol=1e-6, atol=1e-9)
