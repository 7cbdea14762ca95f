"""Parameters so many that leaves are drawn one by one, in blocks, and drawn again."""

from __future__ import annotations

import itertools
import multiprocessing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cases.problems import assert_mean, replicate

import lejax
from experiments.benchmarks import memory
from lejax._internal import blocks, random, trees

KEY = jax.random.key(11)


@pytest.fixture
def few_are_many(monkeypatch):
    monkeypatch.setattr(trees, "POOLED_NUMBERS", 20)
    monkeypatch.setattr(blocks, "LEAST_APART", 0)
    monkeypatch.setattr(random, "BLOCK_NUMBERS", 64)


SHAPES = (1000,), (7, 143), (331, 3), (5, 11, 20), ()
# And of every shape another number of copies in the full suite.
COPIES = dict(zip(SHAPES, (3, 1, 3, 1, 3), strict=True))


@pytest.mark.parametrize(
    ("shape", "copies"),
    [
        pytest.param(s, c, marks=() if c == COPIES[s] else pytest.mark.slow)
        for s in SHAPES
        for c in (1, 3)
    ],
)
def test_blocks_are_normal_whatever_the_device(
    few_are_many, monkeypatch, shape, copies
):
    """Side by side, as on an accelerator, they are the same numbers."""
    like = {"a": jnp.zeros(shape), "b": jnp.zeros((50,), jnp.bfloat16)}

    def draw():
        layout = blocks.layout_of(like)
        assert len(layout.zeros(like)) == 2

        @jax.jit
        def drawn(key):
            noise = random.standard_normals(
                key, layout.zeros(like), copies, pooled=layout.pooled
            )
            return jax.vmap(layout.tree)(noise.copies(copies))

        return drawn(KEY)

    drawn = draw()
    assert drawn["a"].shape == (copies, *shape)
    assert drawn["b"].dtype == jnp.bfloat16
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        beside = draw()
    for a, b in zip(*map(jax.tree.leaves, (drawn, beside)), strict=True):
        # Two programs may round the same number apart.
        close = 4 * float(jnp.finfo(a.dtype).eps)
        np.testing.assert_allclose(*(x.astype(float) for x in (a, b)), rtol=close)
    if shape:
        flat = np.asarray(drawn["a"], float).reshape(copies, -1)
        for copy in flat:
            assert scipy.stats.kstest(copy, "norm").pvalue > 1e-3
            # No block is another one again.
            assert len(np.unique(np.abs(copy))) == copy.size
        if copies > 1:
            np.testing.assert_array_equal(np.abs(flat[0]), np.abs(flat[1]))
            assert abs(np.corrcoef(flat[0], flat[1])[0, 1]) < 4 / flat[0].size ** 0.5


@pytest.mark.parametrize("large", [False, True])
def test_copies_of_a_draw_are_standard_normal_and_uncorrelated(large, monkeypatch):
    if large:
        monkeypatch.setattr(trees, "POOLED_NUMBERS", 1)
        monkeypatch.setattr(blocks, "LEAST_APART", 2)
    like = {"a": jnp.zeros((2, 1)), "b": jnp.zeros(3)}
    layout = blocks.layout_of(like)
    assert len(layout.zeros(like)) == 1 + large

    def draw(key):
        noise = random.standard_normals(key, layout.zeros(like), 5, pooled=True)
        return jax.vmap(layout.tree)(noise.copies(5))

    found = replicate(draw, 20_000)
    copies = np.concatenate([found["a"][..., 0], found["b"]], -1).astype(np.float64)
    flat = copies.reshape(len(copies), -1)
    assert_mean(flat, 0)
    assert_mean(flat[:, :, None] * flat[:, None], np.eye(25), sigmas=5)  # 625 of them
    assert_mean(flat**4, 3)
    # They share their numbers, but not their signs.
    np.testing.assert_array_equal(np.abs(copies), np.abs(copies[:, :1]).repeat(5, 1))


def test_small_leaves_are_drawn_together(few_are_many, monkeypatch):
    """In a tree of many numbers too; what a tree has is what comes back."""
    monkeypatch.setattr(blocks, "LEAST_APART", 16)
    tree = {
        "a": jnp.arange(20.0).reshape(4, 5),
        "b": jnp.ones(3),
        "c": jnp.full((2, 2), 7.0, jnp.float32),
    }
    layout = blocks.layout_of(tree)
    found = layout.blocks(tree)
    assert [block.shape for block in found] == [(7,), (4, 5)]
    jax.tree.map(np.testing.assert_array_equal, layout.tree(found), tree)


def test_what_is_drawn_again_is_what_was_evaluated(few_are_many):
    """One steep pair: δ̂ is its better draw u, and F its loss + log 2."""
    x = {"a": jnp.linspace(-1, 1, 300).reshape(20, 15), "b": jnp.ones(30)}

    def loss(x):
        return 1e3 * (jnp.sum(x["a"] * jnp.cos(jnp.arange(15.0))) + jnp.sum(x["b"]))

    @jax.jit
    def update(x):
        smoothed = lejax.value_and_grad(loss, lejax.importance(2), 0.3)
        (value, _), grads = smoothed(x, KEY)
        moved = jax.tree.map(lambda x, g: x - 0.3 * g, x, grads)
        return value, loss(moved), loss(x)

    value, moved, before = update(x)
    np.testing.assert_allclose(value, moved + np.log(2), rtol=1e-5)
    assert moved < before - 1e3


SAMPLERS = {
    "pairs": lejax.importance(4000),
    "plain": lejax.importance(4001, antithetic=False),
    "signs": lejax.importance(4000, signs_per_draw=4),
    "pathwise": lejax.pathwise(200),
    "score_function": lejax.score_function(4000),
    "robbins_monro": lejax.robbins_monro(400, 4, lambda j: 1 / (1 + j)),
    "sgld": lejax.sgld(6000, 0.05),
}
FEW = dict(zip(SAMPLERS, itertools.cycle((0.3, 2.5)), strict=False))


@pytest.mark.parametrize(
    ("name", "tau"),
    [
        pytest.param(name, tau, marks=() if tau == FEW[name] else pytest.mark.slow)
        for name in SAMPLERS
        for tau in (0.3, 2.5)
    ],
)
def test_closed_form(few_are_many, name, tau):
    """On f = |x|²/2 + b·x the steps are known; errors by ten keys."""
    sampler = SAMPLERS[name]
    x = jnp.linspace(-1.0, 1.0, 24)
    b = jnp.where(jnp.arange(24) < 4, 0.7, 0.0)

    def loss(x):
        # Few directions count, so that weights do not degenerate.
        return jnp.sum(x[:4] ** 2) / 2 + b @ x

    def step(key, tau):
        return lejax.step_fn(loss, sampler, tau)(x, key)

    keys = jax.random.split(KEY, 10)
    ends = jax.jit(jax.vmap(step, (0, None)))(keys, tau)
    gradient = jnp.where(jnp.arange(24) < 4, x + b, 0.0)
    explicit = sampler.name in ("pathwise", "score_function")
    share = jnp.where(jnp.arange(24) < 4, 1.0 if explicit else 1 / (1 + tau), 1.0)
    expected = x - tau * share * gradient
    error = np.asarray(ends.std(0, ddof=1)) / 10**0.5 + 1e-4
    z = (np.asarray(ends.mean(0)) - np.asarray(expected)) / error
    # Student's with nine degrees: 24 coordinates, one in ten thousand.
    assert np.abs(z).max() < scipy.stats.t.ppf(1 - 1e-4 / 48, 9)


def test_the_memory_of_an_update_as_planned(monkeypatch):
    """A sixteenth of all sizes, of which the memory is the same multiple."""
    monkeypatch.setattr(trees, "POOLED_NUMBERS", trees.POOLED_NUMBERS // 16)
    monkeypatch.setattr(random, "BLOCK_NUMBERS", random.BLOCK_NUMBERS // 16)
    monkeypatch.setattr(blocks, "LEAST_APART", blocks.LEAST_APART // 16)
    parameters = 2 * trees.POOLED_NUMBERS
    found = memory.measure(memory.Config(parameters, layers=4, batch_size=2), 4)
    assert 3 < found["planned_in_parameters"] < 4


@pytest.mark.slow
def test_a_hundred_million_parameters():
    """An update takes at most four times their memory; J = 64 in the script."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(memory.measure, (memory.Config(), 4))
    assert found["parameters_mb"] > 380
    assert found["peak_in_parameters"] < 4
