"""Objectives without a gradient: what they compute, the searches, their comparison."""

from __future__ import annotations

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lejax
from experiments.applications import gradient_free
from experiments.applications.gradient_free import (
    comparison,
    error_count,
    perceptron,
    quantized,
    spiking,
    swing_up,
    table,
)
from experiments.applications.gradient_free.runs import (
    Config,
    points_of,
    run,
    seconds_per_update,
)
from experiments.applications.gradient_free.search import Search
from experiments.applications.gradient_free.searchers import searchers
from experiments.common import data

pytestmark = pytest.mark.standard
OBJECTIVES = ("error_count", "spiking", "quantized", "perceptron", "swing_up")


@functools.cache
def digits():
    return data.load("digits")


def test_the_perceptron_counts_its_mistakes():
    problem = perceptron.problems()["α = 0.3"]
    params, held = problem.params(3), problem.data(3, False)
    patterns = np.asarray(held["patterns"])
    assert patterns.shape == (300, 1001)
    assert set(np.unique(patterns)) == {-1, 1}
    weights = np.sign(np.asarray(params))
    wrong = np.mean(patterns @ weights < 0)
    np.testing.assert_allclose(problem.loss(params, held["patterns"]), wrong, rtol=1e-6)
    np.testing.assert_allclose(problem.score(params, held), 1 - wrong, rtol=1e-6)
    others = problem.data(4, False)["patterns"], problem.data(3, True)["patterns"]
    for other in others:
        assert not np.array_equal(other, patterns)


def test_neurons_leak_and_fire():
    params = spiking.problems(digits(), quick=True)["64-8-10"].params(0)
    images = digits().train_images[:3] * 2
    current = images @ params["hidden"]["kernel"]
    rates = np.zeros_like(current)
    for image, neuron in np.ndindex(current.shape):
        membrane = 0.0
        for _ in range(spiking.STEPS):
            membrane = 0.9 * membrane + 0.4 * current[image, neuron]
            if membrane > 1:
                rates[image, neuron] += 1 / spiking.STEPS
                membrane = 0.0
    assert 0 < (rates > 0).mean() < 1
    expected = 4 * rates @ params["readout"]["kernel"]
    np.testing.assert_allclose(spiking.logits(params, images), expected, atol=1e-5)
    through = spiking.logits(params, images, spiking.fires_with_gradient)
    np.testing.assert_array_equal(through, spiking.logits(params, images))


@pytest.mark.parametrize("of", [error_count, spiking, quantized])
def test_what_has_a_gradient(of):
    """None of the objectives in its first layer, and all that stand beside them."""
    for problem in of.problems(digits(), quick=True).values():
        params = problem.params(0)
        batch = digits().train_images[:50], digits().train_labels[:50]
        leaves = jax.tree.leaves(jax.grad(problem.loss)(params, batch))
        first = max(leaves, key=lambda leaf: leaf.size)
        np.testing.assert_array_equal(first, 0)
        slopes = jax.tree.leaves(jax.grad(problem.reference)(params, batch))
        assert all((slope != 0).any() for slope in slopes)


@pytest.mark.parametrize("of", [error_count, spiking])
def test_examples_have_credit(of):
    for problem in of.problems(digits(), quick=True).values():
        batch = digits().train_images[:20], digits().train_labels[:20]
        report = lejax.reduction_report(problem.loss, problem.params(0), batch)
        assert {leaf.credit for leaf in report.leaves} == {"by example"}
        kernel = max(report.leaves, key=lambda leaf: np.prod(leaf.shape))
        assert kernel.reason == "20 rows meet 64 inputs"


def test_what_quantised_networks_compute_with():
    x = jnp.linspace(-3, 3, 1001)
    assert set(np.unique(quantized.sign(x))) == {-1, 1}
    steps = np.unique(quantized.steps(quantized.WEIGHT_STEP)(x)) / quantized.WEIGHT_STEP
    np.testing.assert_allclose(steps, np.arange(-127, 128), atol=1e-5)
    for problem in quantized.problems(digits(), quick=True).values():
        batch = digits().train_images[:20], digits().train_labels[:20]
        weights = problem.weights(problem.params(0))
        one = problem.loss(problem.params(0), batch)
        np.testing.assert_allclose(problem.loss_of_weights(weights, batch), one)
        report = lejax.reduction_report(problem.loss_of_weights, weights, batch)
        assert {leaf.credit for leaf in report.leaves} == {"by example"}
    for quantizer in (quantized.rounded, quantized.straight_through):
        found = quantizer(quantized.sign, x)
        np.testing.assert_allclose(found, quantized.sign(x), atol=1e-6)


def test_wrong_labels():
    problems = error_count.problems(digits(), quick=True)
    right = digits().train_labels
    for noise in (0.0, 0.2, 0.4):
        of = problems[f"784-10, {100 * noise:g} % wrong labels"].data
        labels = np.asarray(of(1, False)["train"][1])
        spread = np.sqrt(noise * (1 - noise) / len(right))
        assert abs((labels != right).mean() - noise) <= 4 * spread
        np.testing.assert_array_equal(of(1, False)["test"][1], digits().test_labels)
    assert not np.array_equal(labels, of(2, False)["train"][1])


def test_a_pole_that_nobody_pushes_keeps_its_energy(monkeypatch):
    """But for the error of the steps, of first order; at the top, at rest, it stays."""

    def energy(state):
        _, speed, angle, turning = state
        along = speed + swing_up.HALF_LENGTH * turning * jnp.cos(angle)
        up = -swing_up.HALF_LENGTH * turning * jnp.sin(angle)
        # A rod: its own turning has a third of m l², l half its length.
        own = (swing_up.HALF_LENGTH * turning) ** 2 / 3
        height = swing_up.GRAVITY * swing_up.HALF_LENGTH * jnp.cos(angle)
        pole = (along**2 + up**2 + own) / 2 + height
        return swing_up.CART * speed**2 / 2 + swing_up.POLE * pole

    def error(parts):
        monkeypatch.setattr(swing_up, "SECONDS_PER_STEP", 0.02 / parts)

        def step(state, _):
            state = swing_up.move(state, jnp.zeros(()))
            return state, energy(state)

        state = jnp.array([0.0, 0.3, 1.0, -0.5])
        _, energies = jax.lax.scan(step, state, length=250 * parts)
        return float(jnp.abs(energies - energy(state)).max())

    assert 3 < error(1) / error(4) < 5
    top = jnp.zeros(4)
    np.testing.assert_array_equal(swing_up.move(top, jnp.zeros(())), top)


SEARCHERS = searchers(
    24,
    by_example=True,
    covariances=("diagonal", "full"),
    reference=True,
    weights=lambda params: params,
)
SETTINGS = {"sigma": 0.1, "rate": 0.1, "share": 0.5, "beta": 4.0, "mixing": 0.1}
NUMBERS = {
    "SPSA": {"sigma": 0.1, "rate": 3.0},
    "gradient": {"rate": 0.03},
    **{name: {"sigma": 0.3} for name in ("SNES", "Sep_CMA_ES", "LM_MA_ES")},
    "SNES, straight through": {"sigma": 0.3},
}


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("importance", "gaussian, full", "SNES", "SPSA")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in SEARCHERS
    ],
)
def test_searches_descend(name):
    """A regression of thirty weights; every batch is another."""
    searcher = SEARCHERS[name]
    numbers = NUMBERS.get(name, SETTINGS)
    weights = jnp.linspace(-1, 2, 30)[:, None]

    def loss(params, inputs):
        return jnp.mean((inputs @ (params["w"] - weights)) ** 2)

    start = {"w": jnp.zeros((30, 1))}
    search = searcher.make(loss, start, 20)
    more = "credit" not in name and "direct" not in name and "ranks" not in name
    of_lejax = name.startswith(("importance", "score_function")) and more
    expected = 3 if name == "gradient" else 20 + of_lejax
    assert search.evaluations == expected

    def update(k, state):
        inputs = jax.random.normal(jax.random.key(k), (64, 30))
        return search.update(state, jax.random.key(k + 1), k, inputs, numbers)

    @jax.jit
    def run(numbers):
        state = search.init(start, jax.random.key(0), numbers)
        return search.params(jax.lax.fori_loop(0, 500, update, state))

    found = run(numbers)
    assert jnp.sum((found["w"] - weights) ** 2) < 0.1 * jnp.sum(weights**2)


def test_the_matrix_of_lm_ma_es_learns_from_the_best_draws():
    """Its path and the first row of its matrix begin along the same mean of draws."""
    search = SEARCHERS["LM_MA_ES"].make(lambda x, batch: jnp.sum(x), jnp.ones(30), 12)
    numbers, key = {"sigma": 0.3}, jax.random.key(0)
    state = search.init(jnp.ones(30), key, numbers)
    state = search.update(state, key, 0, None, numbers)
    for path in (state.p_std, state.M[0], state.M[3]):
        unit = path / jnp.linalg.norm(path)
        step = search.params(state) - 1  # of the mean, while the matrix is none yet
        np.testing.assert_allclose(unit, step / jnp.linalg.norm(step), rtol=1e-4)


def test_tables_tell_when_the_level_was_reached():
    runs = {
        "importance": {
            "updates": [0, 1, 2, 4],
            "evaluations_per_update": 10,
            "scores": {"0": [0.1, 0.5, 0.9, 0.95], "1": [0.1, 0.2, 0.3, 0.85]},
        }
    }
    (found,) = table.curves(runs, {"importance": 0.5}, 0.8).values()
    np.testing.assert_array_equal(found.until_level(found.evaluations), [20, 40])
    np.testing.assert_array_equal(found.at(found.seconds, 1.0), [0.9, 0.3])
    np.testing.assert_array_equal(found.at(found.evaluations, 10), [0.5, 0.2])
    late = found._replace(level=0.9)
    np.testing.assert_array_equal(late.until_level(late.seconds), [1, np.inf])
    assert table.until(np.array([1.0, np.inf]), 2) == "1 of 2 within 2"
    assert table.until(np.full(2, np.inf), 40) == "more than 40"
    assert table.until(np.full(5, 0.0076), 1) == "0.0076 ± 0"


def test_both_budgets_end_at_a_point():
    search = Search(*3 * (lambda: None,), evaluations=100)
    config = Config("spiking", evaluations=10_000, seconds=10.0)
    for seconds, last in ((0.01, 1000), (1.0, 100)):
        points = points_of(config, search, seconds)
        assert {0, 100, round(10 / seconds)} <= set(points)
        assert points[-1] == last
        assert points == sorted(set(points))


@pytest.mark.slow
def test_runs_of_another_setting_are_made_again(tmp_path, monkeypatch):
    """They alone; and what was tried stays tried."""
    config = Config("swing_up", quick=True, output=tmp_path)
    comparison.main(config)
    path = tmp_path / "gradient_free_swing_up.json"
    record = json.loads(path.read_text())
    runs = record["runs"]["easy"]
    runs["OpenES"]["numbers"]["sigma"] *= 2
    runs["SPSA"]["updates"].append(10_000)
    path.write_text(json.dumps(record))
    made = []

    def counted(*args):
        made.append((args[1], args[2], args[-2]))
        return run(*args)

    monkeypatch.setattr(comparison, "run", counted)
    comparison.main(config)
    assert sorted(set(made)) == [("easy", "OpenES", False), ("easy", "SPSA", False)]
    assert len(made) == 4
    again = json.loads(path.read_text())["runs"]["easy"]
    assert again["OpenES"]["numbers"] != runs["OpenES"]["numbers"]


@pytest.mark.slow
def test_times_are_those_of_what_is_chosen(tmp_path, monkeypatch):
    """What is tuned again may choose another population: all are timed again."""
    config = Config("swing_up", quick=True, output=tmp_path)
    comparison.main(config)
    path = tmp_path / "gradient_free_swing_up.json"
    record = json.loads(path.read_text())
    del record["tuning"]["easy"]["SPSA"]
    path.write_text(json.dumps(record))
    timed = []

    def counted(config, name, chosen):
        timed.append(name)
        return seconds_per_update(config, name, chosen)

    monkeypatch.setattr(comparison, "seconds_per_update", counted)
    comparison.main(config)
    assert timed == ["easy"]


def test_without_evosax(monkeypatch):
    monkeypatch.delattr(gradient_free, "evolution")
    monkeypatch.delitem(sys.modules, f"{gradient_free.__name__}.evolution")
    monkeypatch.setitem(sys.modules, "evosax.algorithms", None)
    with pytest.raises(SystemExit, match=r"pip install -e '.\[benchmark\]'"):
        searchers(24)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_quickly_and_again(objective, tmp_path, capsys, monkeypatch):
    """A quick comparison; the same command then has nothing left to do."""
    config = Config(objective, data="digits", quick=True, output=tmp_path)
    comparison.main(config)
    said = capsys.readouterr().out
    assert "| importance |" in said
    assert "| OpenES |" in said
    stem = f"gradient_free_{objective}"
    picture = (tmp_path / f"{stem}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    record = json.loads((tmp_path / f"{stem}.json").read_text())
    for runs in record["runs"].values():
        for of_searcher in runs.values():
            assert set(of_searcher["scores"]) == {"0", "1"}
    monkeypatch.setattr(comparison, "run", None)
    monkeypatch.setattr(comparison, "seconds_per_update", None)
    comparison.main(config)
    assert json.loads((tmp_path / f"{stem}.json").read_text()) == record
