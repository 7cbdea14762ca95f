"""The reduction: what it finds, and that it changes neither values nor gradients."""

from __future__ import annotations

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.reduction import (
    CASES,
    HIDDEN,
    INPUTS,
    ROWS,
    check,
    kernel_and,
    normal,
    plain,
)
from cases.spaces import reduced
from hypothesis import strategies

import lejax

# Flax and Equinox promote on their own.
pytestmark = pytest.mark.standard


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_loss(name):
    case = CASES[name]()
    half = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(case.params))
    zeros = check(*case[:3], rtol=2e-3 if half else 2e-5)
    shapes = [leaf.shape for leaf in jax.tree.leaves(zeros)]
    assert shapes == case.drawn
    report = lejax.reduction_report(*case[:3])
    assert [leaf.reduced_shape for leaf in report.leaves] == case.drawn


def test_a_leaf_without_use_is_not_drawn():
    value_fn, params, batch = kernel_and(lambda w, x, h: 0.0)
    params = {**params, "unused": normal(5, 3, 2), "empty": jnp.zeros((0, 4))}
    zeros = check(value_fn, params, batch)
    assert zeros["unused"].shape == (0,)
    assert zeros["empty"].shape == (0, 4)
    space = reduced(value_fn, params, batch, inner_batches=False)
    np.testing.assert_array_equal(
        space.to_null_space(params)["unused"], params["unused"]
    )


def test_a_constant_loss_draws_nothing():
    for sampler in (lejax.importance(10), lejax.score_function(10)):
        step = jax.jit(lejax.step_fn(lambda w, x: jnp.sum(x), sampler, tau=0.3))
        moved = step(normal(0, 3), jax.random.key(0), jnp.ones(2))
        np.testing.assert_array_equal(moved, normal(0, 3))


@pytest.mark.parametrize(
    "batch", ["repeated rows", "zero rows", "zero columns", "zero"]
)
def test_rank_deficient_batches(batch):
    value_fn, params, x = kernel_and(lambda w, x, h: 0.0)
    x = {
        "repeated rows": x.at[1].set(x[0]),
        "zero rows": x.at[1].set(0),
        "zero columns": x.at[:, :5].set(0),
        "zero": 0 * x,
    }[batch]
    zeros = check(value_fn, params, x)
    assert zeros["w"].shape == (ROWS, HIDDEN)


def test_a_row_of_a_table_is_drawn_once():
    """The tokens read 4 rows: as many draws, and no noise in the others."""
    case = CASES["table[i]"]()

    @jax.jit
    def draw(params, batch):
        space = reduced(case.value_fn, params, batch, inner_batches=False)
        noise = jax.tree.map(lambda leaf: leaf[0], space.noise(jax.random.key(0), 1))
        return noise["table"], space.lift(noise)["table"]

    noise, lifted = (np.abs(leaf).max(1) for leaf in draw(case.params, case.batch))
    assert np.count_nonzero(noise) == 4
    np.testing.assert_array_equal(np.flatnonzero(lifted), [0, 2, 5, 9])


def test_rows_of_very_different_size_all_count():
    """A small row beside a large one must not be taken for rounding."""
    value_fn, params, x = kernel_and(lambda w, x, h: 0.0)
    check(value_fn, params, x.at[0].multiply(1e-6).at[1].multiply(1e6))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_row_that_is_not_finite_fails_loudly_and_alone(bad):
    """A mask in the loss may leave it out; the other rows keep their directions."""

    def value_fn(w, batch):
        x, mask = batch
        return jnp.sum(jnp.where(mask, jnp.tanh(x @ w), 0))

    x, w = normal(0, ROWS, INPUTS).at[1, 2].set(bad), normal(1, INPUTS)
    mask = jnp.array([True, False, True])

    @jax.jit
    def values(batch):
        space = reduced(value_fn, w, batch, inner_batches=False)
        u = 0.3 * space.noise(jax.random.key(0), 1)[0]
        return space.value_fn(u), value_fn(w + space.lift(u), batch)

    np.testing.assert_allclose(*values((x, mask)), rtol=1e-5)
    value, _ = values((x, ~mask))
    assert np.isnan(value)
    step = jax.jit(lejax.step_fn(value_fn, lejax.importance(50), tau=0.1))
    moved = step(w, jax.random.key(0), (x, ~mask))
    np.testing.assert_array_equal(moved, w)
    assert (np.asarray(step(w, jax.random.key(0), (x, mask))) != w).all()


@pytest.mark.parametrize("rows", [INPUTS, INPUTS + 1])
def test_as_many_rows_as_inputs_gain_nothing(rows):
    case = plain(lambda x, w: x @ w, batch=(rows, INPUTS), rows=(INPUTS, HIDDEN))
    leaf = lejax.reduction_report(*case[:3]).leaves[1]
    assert leaf.reason == f"{rows} rows meet {INPUTS} inputs"
    space = reduced(*case[:3], inner_batches=False)
    assert space.to_null_space is None
    drift = jax.tree.map(jnp.ones_like, space.zeros)
    moved = jax.tree.map(jnp.subtract, case.params, drift)
    np.testing.assert_allclose(
        jax.jit(lambda u: space.value_fn(u, sign=-1.0))(drift),
        case.value_fn(moved, case.batch),
        rtol=1e-5,
    )


def test_pairs_share_the_product_with_many_rows():
    """As they do with few: of a pair it is one product, not two."""
    rows, inputs, units = 64, 32, 128
    x, w = jnp.ones((rows, inputs)), jnp.ones((inputs, units))

    def loss(w, x):
        return jnp.mean((x @ w) ** 2)

    def flops(reduction):
        step = lejax.step_fn(
            loss,
            lejax.importance(16, credit=False, reduction=reduction, signs_per_draw=1),
            tau=0.1,
        )
        compiled = jax.jit(step).lower(w, jax.random.key(0), x).compile()
        # A scan counts once: of either the same chunks.
        return compiled.cost_analysis()["flops"]

    assert flops(True) < flops(False) - 0.8 * 8 * 2 * rows * inputs * units


def test_a_product_of_half_precision_is_left_as_it_is():
    """Moved by another one it would be rounded twice."""
    x, w = (
        jnp.linspace(-1, 1, 64).reshape(16, 4),
        jnp.linspace(0.3, 2, 12).reshape(4, 3),
    )

    def loss(w, x):
        product = jax.lax.dot(x, w, preferred_element_type=jnp.bfloat16)
        return jnp.tanh(product.astype(jnp.float32)).sum()

    space = reduced(loss, w, x, inner_batches=False)
    drift = jnp.full_like(w, 0.37)
    np.testing.assert_array_equal(space.value_fn(drift), loss(w + drift, x))


def test_what_is_out_of_range_reads_no_row():
    """It is the fill, wherever a chain has drifted."""
    case = CASES["take, filled"]()
    space = reduced(*case[:3], inner_batches=False)
    drift = jax.tree.map(jnp.ones_like, space.zeros)
    moved = jax.tree.map(jnp.add, case.params, space.lift(drift))
    np.testing.assert_allclose(
        jax.jit(space.value_fn)(drift), case.value_fn(moved, case.batch), rtol=1e-5
    )


@jax.custom_jvp
def spike(x):
    """A step with the slope of a fast sigmoid, as spiking networks are trained."""
    return (x > 0).astype(x.dtype)


@spike.defjvp
def _spike_rule(primals, tangents):
    (x,), (t,) = primals, tangents
    return spike(x), t / (1 + jnp.abs(x)) ** 2


@jax.custom_vjp
def rounded(x):
    """The straight-through estimator of rounding."""
    return jnp.round(x)


rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, ct: (ct,))


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.relu6, spike, rounded])
def test_rules_of_custom_derivatives_survive(activation):
    """At 0 an inlined rectifier has the slope ½, an inlined step or rounding none."""
    params = {"v": jnp.arange(1.0, HIDDEN + 1), "w": jnp.zeros((INPUTS, HIDDEN))}

    def value_fn(params, x):
        return jnp.mean(activation(x @ params["w"]) @ params["v"])

    x = normal(3, ROWS, INPUTS)

    @jax.jit
    def slopes(params, x):
        space = reduced(value_fn, params, x, inner_batches=False)
        assert space.zeros["w"].shape == (ROWS, HIDDEN)
        slope = space.lift(jax.grad(space.value_fn)(space.zeros))
        return slope, jax.grad(value_fn)(params, x)

    slope, truth = slopes(params, x)
    np.testing.assert_allclose(slope["w"], truth["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slope["v"], truth["v"], atol=1e-6)


def check_network(
    rows,
    inputs,
    widths,
    activation,
    *,
    transposed=False,
    leading=False,
    twice=False,
    repeated=False,
    seed=0,
):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    sizes = [inputs, *widths]
    params = [
        {"w": normal(b, a) if transposed else normal(a, b), "b": normal(b)}
        for a, b in itertools.pairwise(sizes)
    ]
    x = normal(rows, inputs)
    x = x.at[-1].set(x[0]) if repeated else x
    x = x[None] if leading else x

    def forward(params, x):
        for layer in params:
            w = layer["w"].T if transposed else layer["w"]
            x = activation(x @ w + layer["b"])
        return jnp.mean(x)

    def value_fn(params, x):
        return forward(params, x) + (forward(params, jnp.cos(x)) if twice else 0.0)

    zeros = check(value_fn, params, x, rtol=1e-4)
    met = rows * (2 if twice else 1)
    drawn = zeros[0]["w"].shape
    first = params[0]["w"].shape
    assert drawn == ((met, widths[0]) if met < inputs else first)
    assert all(
        a["w"].shape == b["w"].shape for a, b in zip(zeros[1:], params[1:], strict=True)
    )


def test_networks():
    """Every choice with every other one."""
    check_network(2, 9, [4, 2], jnp.tanh)
    check_network(3, 8, [3], jax.nn.gelu, transposed=True, leading=True, twice=True)
    check_network(4, 9, [5, 1, 2], jax.nn.relu, twice=True, repeated=True)
    check_network(5, 7, [3, 4], jnp.sin, transposed=True, repeated=True)
    check_network(4, 6, [2], jnp.tanh, leading=True, repeated=True)
    check_network(9, 5, [3, 2], jnp.sin, transposed=True, twice=True)


@pytest.mark.slow
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(
    rows=strategies.integers(1, 9),
    inputs=strategies.integers(1, 9),
    widths=strategies.lists(strategies.integers(1, 5), min_size=1, max_size=3),
    activation=strategies.sampled_from([jnp.tanh, jax.nn.relu, jax.nn.gelu, jnp.sin]),
    transposed=strategies.booleans(),
    leading=strategies.booleans(),
    twice=strategies.booleans(),
    repeated=strategies.booleans(),
    seed=strategies.integers(0, 1000),
)
def test_random_networks(rows, inputs, widths, activation, **options):
    check_network(rows, inputs, widths, activation, **options)
