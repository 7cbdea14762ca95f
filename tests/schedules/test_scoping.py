"""The schedule of section 6.5.1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lejax


@pytest.mark.parametrize(("first", "rate"), [(1.5, 0.01), (0.01, -0.01), (0.3, 0.0)])
def test_values(first, rate):
    schedule = lejax.scoping(first, rate)
    for k in (0, 1, 17, 500):
        np.testing.assert_allclose(schedule(k), first / (1 + rate) ** k, rtol=2e-6)
        traced = jax.jit(schedule)(jnp.array(k))
        np.testing.assert_allclose(traced, first / (1 + rate) ** k, rtol=2e-6)
    assert jnp.asarray(schedule(jnp.array(3))).dtype == jnp.float32


def test_the_paper_s_annealing_and_its_reverse():
    np.testing.assert_allclose(lejax.scoping(1.5, 0.01)(500), 0.01036, rtol=1e-3)
    rise = lejax.scoping(0.01, (0.01 / 1.5) ** (1 / 500) - 1)
    np.testing.assert_allclose(rise(500), 1.5, rtol=1e-4)


def test_after_a_million_updates():
    np.testing.assert_allclose(
        lejax.scoping(1.0, 1e-5)(10**6), (1 + 1e-5) ** -1e6, rtol=1e-5
    )
