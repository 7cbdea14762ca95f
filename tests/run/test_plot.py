"""The picture of a run: panels of what was estimated, from its history."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.runs import KEY, MANY, bowl, minimize
from matplotlib import pyplot

import lejax


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def test_panels_of_a_run():
    result = minimize(sampler=MANY, params=jnp.full(2, 3.0), num_updates=40)
    figure = lejax.plot(result)
    objective, effective, shares = figure.axes
    x, y = objective.lines[0].get_data()
    np.testing.assert_array_equal(x, 400 * np.arange(1, 42))
    np.testing.assert_array_equal(y, result.history.objective)
    (band,) = objective.collections
    low = result.history.objective - 2 * result.history.standard_error
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(np.nanmin(low))
    assert effective.lines[1].get_ydata()[0] == 20
    certified = shares.lines[1].get_ydata()
    assert len(certified) == 20
    assert certified[0] == 1
    assert np.mean(certified) == pytest.approx(
        result.history.certified.mean(), abs=0.05
    )


def test_panels_of_what_is_not_estimated_are_left_out():
    chain = lejax.plot(minimize(sampler=lejax.sgld(4, 0.1)))
    assert [axes.get_ylabel() for axes in chain.axes] == [""]
    pair = lejax.plot(minimize(sampler=lejax.pathwise(2)))
    assert [axes.get_ylabel() for axes in pair.axes] == [
        "objective",
        "effective samples",
    ]


def test_infos_of_a_loop_of_ones_own():
    tx = lejax.heat(lejax.pathwise(20), 0.1, key=KEY)

    def update(carry, _):
        x, state = carry
        grads, state = tx.update(None, state, x, value_fn=bowl)
        return (x - 0.1 * grads, state), state.info

    x = jnp.full(2, 3.0)
    _, infos = jax.lax.scan(update, (x, tx.init(x)), length=30)
    objective, _, shares = lejax.plot(infos).axes
    np.testing.assert_array_equal(objective.lines[0].get_ydata(), infos.objective)
    assert len(shares.lines) == 1
    with pytest.raises(TypeError, match="whose fields have one axis"):
        lejax.plot(jax.tree.map(lambda leaf: leaf[0], infos))


def test_bad_input(monkeypatch):
    with pytest.raises(TypeError, match="result must be what"):
        lejax.plot(3)
    result = minimize()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"needs matplotlib.*pip install matplotlib"):
        lejax.plot(result)
