"""The study end to end in quick form: files, resuming, and values seen before."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import data, methods, study, training, workers
from experiments.common.options import Options
from experiments.paper import section_5_1_2, table_6_1, tuning

# One worker: all build on the runs of Table 6.1.
pytestmark = [
    pytest.mark.standard,
    pytest.mark.xdist_group("study"),
]
QUICK = {"quick": True, "data": "digits"}
# Written by quick_study.py: mean and deviation of every run over twenty seeds.
SEEN = json.loads(Path(__file__).with_name("quick_study.json").read_text())
OTHERS = (
    "chains",
    "causes",
    "section_6_1",
    "figure_6_2",
    "figure_6_3",
    "figure_6_4",
    "figure_6_5",
    "stability",
)


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def results_folder(tmp_path_factory):
    """Table 6.1 in quick form, on which other experiments build."""
    folder = tmp_path_factory.mktemp("results")
    table_6_1.main(Options(**QUICK, output=folder))
    return folder


@pytest.mark.slow
def test_table_6_1(results_folder):
    record = read(results_folder, "table_6_1")
    assert record["data"] == "digits"
    assert {"lejax", "jax", "optax", "flax"} <= record["versions"].keys()
    runs = record["runs"]
    assert list(runs) == [
        *("SGD", "IS", "SGLD", "HR"),
        *("IS, published", "SGLD, published", "HR, published"),
        *("IS, lejax", "SGLD, lejax", "HR, lejax"),
        *("SGD, tuned", "momentum, tuned", "Adam, tuned"),
        *("SGD, equal time", "momentum, equal time", "Adam, equal time"),
    ]
    for label, run in runs.items():
        assert np.shape(run["accuracy"]) == (1, 2, 6)
        expected = {"IS": 20, "SGLD": 20, "HR": 9}.get(label.partition(",")[0], 1)
        # Credit by example takes one more, at x.
        expected += label == "IS, lejax"
        assert run["evaluations_per_update"] == expected
        # The mean of the table is that of the curves.
        mean = np.mean(run["accuracy"], axis=(0, 1))[1:]
        np.testing.assert_allclose(record["table"][label]["mean"], mean, atol=1e-4)
    # Every method starts from the same weights and is tested on the same images.
    starts = [np.asarray(run["accuracy"])[0, :, 0] for run in runs.values()]
    assert all((start == starts[0]).all() for start in starts)
    png = (results_folder / "figure_6_1.png").read_bytes()
    assert png.startswith(b"\x89PNG")


@pytest.mark.slow
def test_rates_are_tuned_without_a_test_image(results_folder):
    record = read(results_folder, "tuning")
    assert all(run["settings"]["validation"] for run in record["runs"].values())
    digits = data.load("digits")
    held_out = training.split(methods.Run("SGD", validation=True), digits)
    together = np.concatenate([held_out.train_images, held_out.test_images])
    np.testing.assert_array_equal(together, digits.train_images)
    sixths = len(held_out.train_labels) / len(held_out.test_labels)
    assert sixths == pytest.approx(5, rel=0.01)
    for run in tuning.chosen(Options(**QUICK, output=results_folder)).values():
        assert len(run.learning_rates) == 1
        assert not run.validation
        assert (run.evaluations, run.test_images) == (25, 1000)


@pytest.mark.slow
def test_what_is_there_is_not_computed_again(results_folder, monkeypatch):
    monkeypatch.setattr(study, "train", None)
    before = (results_folder / "table_6_1.json").read_bytes()
    table_6_1.main(Options(**QUICK, output=results_folder))
    assert (results_folder / "table_6_1.json").read_bytes() == before


@pytest.mark.slow
def test_other_settings_and_more_seeds_are_computed(tmp_path):
    options = Options(**QUICK, output=tmp_path)
    run, other = methods.Run("SGD"), methods.Run("SGD", batch_size=5)
    study.study("first", {"SGD": run}, options, seeds=1)
    study.study("second", {"SGD": other}, options, seeds=1)
    found = read(tmp_path, "second")["runs"]["SGD"]
    assert found["settings"]["batch_size"] == 5
    more = study.study("third", {"SGD": run}, options, seeds=2)
    assert more["SGD"].accuracy.shape[1] == 2


def test_what_is_no_run_is_passed_over():
    """The committed results of all commands in one folder, among them `flatness`."""
    folder = Path(__file__).parents[2] / "experiments" / "results"
    assert "runs" in read(folder, "flatness")
    found = list(study.stored(Options(output=folder), "mnist"))
    assert len(found) > 50
    assert all({"settings", "seeds", "accuracy"} <= run.keys() for run in found)


@pytest.mark.slow
def test_an_interrupted_study_ends_in_the_same_result(tmp_path, monkeypatch):
    runs = {"IS": methods.Run("IS"), "HR": methods.Run("HR", hidden=0)}
    whole = Options(**QUICK, output=tmp_path / "whole")
    study.study("some", runs, whole, seeds=2)

    def interrupted(run, *args):
        for evaluation in training.train(run, *args):
            if run.method == "HR" and evaluation.updates == 4:
                raise KeyboardInterrupt
            yield evaluation

    parts = Options(**QUICK, output=tmp_path / "parts")
    monkeypatch.setattr(study, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.study("some", runs, parts, seeds=2)
    assert list(read(parts.output, "some")["runs"]) == ["IS"]
    trained = []

    def counted(run, *args):
        trained.append(run.method)
        return training.train(run, *args)

    monkeypatch.setattr(study, "train", counted)
    study.study("some", runs, parts, seeds=2)
    assert trained == ["HR"]
    ends = [read(options.output, "some")["runs"] for options in (whole, parts)]
    for label in runs:
        assert ends[0][label] | {"seconds": 0} == ends[1][label] | {"seconds": 0}


@pytest.mark.slow
def test_workers_find_what_one_process_finds(tmp_path):
    options = Options(**QUICK, output=tmp_path)
    runs = [methods.Run("SGD"), methods.Run("IS", hidden=0)]
    tasks = {run.method: (study.fitted(run, options), 2, options) for run in runs}
    ends = []
    for count in (1, 2):
        ticks = []
        ends.append(dict(workers.spread(study.make, tasks, count, ticks.append)))
        assert sum(ticks) == 20
    assert ends[0].keys() == ends[1].keys() == tasks.keys()
    for label in tasks:
        alone, beside = (end[label] for end in ends)
        assert alone["settings"] == beside["settings"]
        # Sums on one core are not rounded as on two.
        np.testing.assert_allclose(alone["accuracy"], beside["accuracy"], atol=0.01)


def assert_as_seen(record, name):
    """Every mean over the seeds is as over twenty, to three standard errors."""
    for label, run in record["runs"].items():
        mean, deviation = (np.array(of) for of in SEEN[name][label])
        found = np.array(run["accuracy"])
        seeds = found.shape[1]
        error = deviation * np.sqrt(1 / seeds + 1 / 20)
        # An accuracy of 200 images moves in steps of a half per cent.
        gap = np.abs(found.mean(1) - mean)
        assert (gap <= 3 * error + 0.005).all(), (name, label)


@pytest.mark.slow
def test_table_6_1_is_as_seen(results_folder):
    assert_as_seen(read(results_folder, "table_6_1"), "table_6_1")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_others_are_as_seen(name, results_folder, capsys):
    module = importlib.import_module(f"experiments.paper.{name}")
    module.main(Options(**QUICK, output=results_folder))
    assert_as_seen(read(results_folder, name), name)
    assert capsys.readouterr().out
    if name.startswith("figure"):
        png = (results_folder / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")


@pytest.mark.slow
def test_table_6_2(results_folder, capsys):
    module = importlib.import_module("experiments.paper.table_6_2")
    module.main(Options(**QUICK, output=results_folder))
    record = read(results_folder, "table_6_2")
    assert record["ratios"]["SGD"] == 1
    assert all(s > 0 for of in record["seconds_per_update"].values() for s in of)
    assert "1953" in capsys.readouterr().out


@pytest.mark.slow
def test_minibatches_and_monotonicity(results_folder):
    for name in ("section_5_1_2", "monotonicity"):
        module = importlib.import_module(f"experiments.paper.{name}")
        module.main(Options(**QUICK, output=results_folder))
        assert (results_folder / f"{name}.png").exists()
    bias = read(results_folder, "section_5_1_2")["bias"]
    assert [row["batch_size"] for row in bias] == [5, 20, 100] * 2
    for few, more, most in (bias[:3], bias[3:]):
        assert few["bias"] > more["bias"] > most["bias"] > 0
    assert read(results_folder, "monotonicity")["rises"]["of F_τ"] == 0


@pytest.mark.slow
def test_bias_of_minibatches(monkeypatch):
    """As by one gradient of importance sampling for each batch, from the same draws."""
    samples, tau = 30, 0.5
    monkeypatch.setattr(section_5_1_2, "TAU", tau)
    images = jax.random.normal(jax.random.key(1), (20, 3))
    labels = jnp.arange(20) % 2
    x = jax.random.normal(jax.random.key(2), (6,))

    def logits(x, rows=slice(None)):
        return images[rows] @ x.reshape(3, 2)

    def loss(x, rows):
        log_p = jax.nn.log_softmax(logits(x, rows))
        return -log_p[jnp.arange(len(rows)), labels[rows]].mean()

    key = jax.random.key(3)
    noise_key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, 20)
    keys = jax.random.split(noise_key, samples)
    points = x + tau**0.5 * jnp.stack([jax.random.normal(key, (6,)) for key in keys])

    def gradient(beta, rows):
        of_points = jax.vmap(jax.value_and_grad(loss), (0, None))
        losses, grads = of_points(points, rows)
        return jax.nn.softmax(-beta * losses) @ grads

    settings = [(1.0, 5), (50.0, 10), (1.0, 20)]  # the last is no minibatch
    monkeypatch.setattr(section_5_1_2, "SETTINGS", settings)
    found = section_5_1_2.excess(logits, labels, x, samples, key)
    assert len(found) == 2
    for (beta, size), value in zip(settings, found, strict=False):
        batches = [gradient(beta, rows) for rows in order.reshape(-1, size)]
        expected = sum(batches) / len(batches) - gradient(beta, order)
        np.testing.assert_allclose(value, expected, atol=1e-6)
        assert abs(expected).max() > 1e-3
