"""How many normals an update draws: that reduction and signs save them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from cases.small_network import BATCH, HIDDEN, INPUTS, PARAMS, TAU, network

import lejax
from lejax._estimators.plan import FEW_NUMBERS, chunk_limit


def drawn(fn, *args):
    """How many normals a function draws, by its jaxpr: what goes through erf⁻¹."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "erf_inv":
                total += equation.outvars[0].aval.size
            inner = [
                leaf
                for value in equation.params.values()
                for leaf in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, "eqns"))
                if hasattr(leaf, "eqns")
            ]
            length = equation.params.get("length", 1)
            total += length * sum(count(getattr(part, "jaxpr", part)) for part in inner)
        return total

    return count(jax.make_jaxpr(fn)(*args).jaxpr)


DRAWS = {
    "importance": (lejax.importance, (40,), 20),
    "importance, plain": (
        lambda *a, **k: lejax.importance(*a, antithetic=False, **k),
        (40,),
        40,
    ),
    "sgld": (lejax.sgld, (7, 0.1), 7),
    "robbins_monro": (lejax.robbins_monro, (3, 8, 0.1), 12),
    "pathwise": (lejax.pathwise, (40,), 20),
    "score_function": (
        lambda *a, **k: lejax.score_function(*a, credit=False, **k),
        (40,),
        20,
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_normals_fall_to_the_reduced_dimension(name):
    make, args, units = DRAWS[name]
    whole, reduced = 4 + INPUTS * HIDDEN, 4 + 2 * HIDDEN

    def count(**options):
        sampler = make(*args, **options)

        def step(key):
            state = sampler.init(PARAMS)
            return sampler.estimate(
                key, state, PARAMS, value_fn=network, batch=BATCH, tau=TAU
            )

        return drawn(step, jax.random.key(0))

    assert count(reduction=False) == units * whole
    assert count() == units * reduced
    if name == "sgld":
        # The end of a chain, for a warm start, is one draw of the whole space.
        assert count(warm_start=True) == units * reduced + whole


def test_forwards_the_normals_are_what_the_examples_see():
    """For every row the outputs of each layer, and no weights."""

    def step(key):
        return lejax.score_function(40).estimate(
            key, (), PARAMS, value_fn=network, batch=BATCH, tau=TAU
        )

    assert drawn(step, jax.random.key(0)) == 20 * len(BATCH) * (HIDDEN + 1)


def test_signs_save_normals():
    def count(num_samples=1000, **options):
        sampler = lejax.importance(num_samples, reduction=False, **options)

        def step(key):
            return sampler.estimate(
                key, (), jnp.ones(1000), value_fn=lambda x: jnp.sum(x**2), tau=0.3
            )

        return drawn(step, jax.random.key(0))

    def assert_units(number, **options):
        """So many, and what fills up a chunk: at most a twentieth."""
        assert number * 1000 <= count(**options) <= 1.05 * number * 1000

    assert_units(500, signs_per_draw=1)
    assert_units(125, signs_per_draw=4)
    assert_units(50)
    assert_units(50, num_samples=100)  # as many units as a standard error needs
    # The paper's samples are independent.
    assert_units(1000, antithetic=False)
    assert_units(500, sample_complement=True)


@pytest.mark.parametrize(
    ("size", "limit"), [(1, 2**10), (2**12, 2**5), (2**17, 8), (2**18, 4), (2**21, 1)]
)
def test_draws_of_a_chunk_on_a_cpu(monkeypatch, size, limit):
    """A cache full, or a few large ones, and one at the least."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert chunk_limit((jnp.zeros(size),)) == limit
    assert limit == 1 or limit * size <= FEW_NUMBERS
