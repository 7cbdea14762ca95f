"""Parameters of half, single and double precision, and of several at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.problems import assert_mean
from cases.registry import (
    BATCH,
    TRANSFORMATIONS,
    every_transformation,
    loss,
    params,
    signature,
    transformation,
)

import lejax


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", "float64", pytest.param("float16", marks=pytest.mark.slow)],
)
def test_dtypes_of_parameters_are_kept(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        p = jax.tree.map(lambda leaf: leaf.astype(dtype), params())
        tx = transformation(name)
        state, given = tx.init(p), {"value_fn": loss, "batch": BATCH.astype(dtype)}
        if name == "importance_by_example" and dtype != "float64":
            # Points that are rounded at random are seen by all examples alike.
            with pytest.raises(ValueError, match="does not separate the examples"):
                jax.eval_shape(lambda s: tx.update(None, s, p, **given), state)
            return
        updates, new = jax.eval_shape(lambda s: tx.update(None, s, p, **given), state)
        assert signature(updates) == signature(p)
        assert signature(new) == signature(state)


@every_transformation
@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", "float64", pytest.param("float16", marks=pytest.mark.slow)],
)
def test_updates_of_every_precision_are_finite(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        p = jax.tree.map(lambda leaf: leaf.astype(dtype), params())
        tx, batch = transformation(name), BATCH.astype(dtype)
        if name == "importance_by_example" and dtype != "float64":
            pytest.skip("refused, as the test before says")
        update = jax.jit(lambda s: tx.update(None, s, p, value_fn=loss, batch=batch))
        updates, _ = update(tx.init(p))
        assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))
        assert any(bool((u != 0).any()) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
def test_half_precision_parameters_are_averaged_in_float32(dtype):
    """The sums of 4000 draws in half precision would be far off."""

    def f(x):
        return jnp.sum((x.astype(jnp.float32) - 0.5) ** 2)

    x = jnp.zeros(8, dtype)
    for make, sampler in (
        (lejax.local_entropy, lejax.importance(4000)),
        (lejax.heat, lejax.pathwise(4000)),
        (lejax.heat, lejax.score_function(4000)),
    ):

        def gradient(x, make=make, sampler=sampler):
            tx = make(sampler, 0.05, key=jax.random.key(0))
            return jax.jit(lambda x: tx.update(None, tx.init(x), x, value_fn=f)[0])(x)

        half, single = gradient(x), gradient(x.astype(jnp.float32))
        assert half.dtype == dtype
        # The same draws; the loss sees them rounded to half precision.
        np.testing.assert_allclose(
            half.astype(jnp.float32), single, rtol=0.01, atol=0.01
        )


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_leaves_of_different_widths(name):
    with jax.enable_x64(True):
        p = {"w": params()["w"], "b": params()["b"].astype(jnp.float64)}

        def f(p, batch):
            return loss(jax.tree.map(lambda x: x.astype(jnp.float32), p), batch)

        tx = transformation(name)
        updates, state = jax.eval_shape(
            lambda s: tx.update(None, s, p, value_fn=f, batch=BATCH), tx.init(p)
        )
        assert signature(updates) == signature(p)
        assert signature(state) == signature(tx.init(p))


# Between the numbers from 1 to 2.
SPACING = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
SLOPE = jnp.array([1.0, -2.0, 0.5])
ROWS = jnp.array([[0.5, 0.25, 0.0, 0.75], [0.25, 0.5, 0.5, 0.25]])


def of_leaf(x):
    """The loss meets the rounded leaf itself."""
    return jnp.sum(SLOPE * x.astype(jnp.float32))


def of_product(w):
    """The loss meets the leaf in a product alone, which is of half precision too."""
    return jnp.sum((ROWS.astype(w.dtype) @ w).astype(jnp.float32) @ SLOPE)


@pytest.mark.parametrize("dtype", SPACING)
@pytest.mark.parametrize("share", [0.01, 0.2])
@pytest.mark.parametrize(("f", "shape"), [(of_leaf, (3,)), (of_product, (4, 3))])
@pytest.mark.parametrize("name", ["importance", "score_function"])
def test_a_small_tau_is_not_rounded_away(name, f, shape, share, dtype):
    """√τ is a share of the spacing: unbiased, at the price `local_entropy` names."""
    tau = (share * SPACING[dtype]) ** 2
    # Single precision would have credit by example, and less noise by itself.
    sampler = getattr(lejax, name)(200, credit=False)
    keys = jax.random.split(jax.random.key(3), 400)

    def gradients(x):
        def of_key(key):
            displacement, _, _ = sampler.estimate(
                key, sampler.init(x), x, value_fn=f, tau=tau
            )
            return -displacement / tau

        return np.asarray(jax.jit(lambda keys: jax.lax.map(of_key, keys))(keys))

    x = jnp.full(shape, 1.3, dtype)
    half, single = gradients(x), gradients(x.astype(jnp.float32))
    expected = jax.grad(f)(x.astype(jnp.float32))
    assert_mean(half, expected)
    price = half.std(0).mean() / single.std(0).mean()
    assert 0.7 < price / np.sqrt(1 + np.sqrt(2 / np.pi) / share) < 1.3
