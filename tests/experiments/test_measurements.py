"""What is timed and measured, on small settings."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import benchmark, chunks, curved, spans, starts

pytestmark = pytest.mark.standard


@pytest.mark.slow
def test_benchmark(capsys, tmp_path, monkeypatch):
    quick = ["--samples", "4", "--moves", "2", "--many-samples", "6", "--rounds", "1"]
    measured = benchmark.memory(benchmark.Config(samples=4, hidden=8), ("SGD step",))
    assert measured["SGD step"] > 50
    everything = benchmark.updates(lambda params, batch: params, benchmark.Config())
    peaks = {**dict.fromkeys(everything, 100.0), "importance, J = 6": 100.0}
    monkeypatch.setattr(benchmark, "memory", lambda config: peaks)
    few = ["--reference-samples", "100", "--repeats", "2", "--hidden", "8"]
    benchmark.main([*quick, *few, "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "Device: " in printed
    assert "OpenES of evosax" in printed
    assert "To an equal error OpenES takes" in printed
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert len(record["seconds"]) == 10
    assert [len(methods) for methods in record["seconds_by_case"].values()] == 5 * [4]
    assert record["peak_resident_megabytes"] == peaks
    errors = record["errors"]
    assert errors["importance, direct"] > errors["importance"] > 0


@pytest.mark.slow
def test_spans(capsys, tmp_path):
    """Credit by the span of an example's rows lowers the variance."""
    spans.main(
        spans.Config(
            positions=(1, 2),
            inputs=30,
            hidden=8,
            batch_size=6,
            samples=100,
            rounds=1,
            output=tmp_path,
        )
    )
    found = json.loads((tmp_path / "spans.json").read_text())["found"]
    assert [of["positions"] for of in found] == [1, 2, 1, 2]
    assert all(of["variance"] > 1 for of in found)
    assert "| 2 | 2 | " in capsys.readouterr().out


@pytest.mark.slow
def test_chunks(capsys, tmp_path):
    """Of each update the default and what is no larger than J."""
    chunks.main(
        chunks.Config(
            chunk_sizes=(4, 64),
            samples=8,
            batch_size=3,
            large=50,
            large_samples=4,
            small_samples=64,
            rounds=1,
            output=tmp_path,
        )
    )
    found = json.loads((tmp_path / "chunks.json").read_text())["found"]
    assert [list(of) for of in found.values()] == [
        *[["default", "4"]] * 4,
        ["default", "4", "64"],
    ]
    for of in found.values():
        assert of["default"]["ratio"] == 1
        assert all(chunk["seconds"] > 0 < chunk["megabytes"] for chunk in of.values())
    assert "| 784-200-10, importance | 4 |" in capsys.readouterr().out


def test_open_es_estimates_the_same_step():
    """At equal draws and step it is -τ∇F^H, here of a loss that is linear in them."""
    config = benchmark.Config(samples=4000, tau=0.02)
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}

    def loss(params, x):
        return x @ params["w"] + params["b"]

    update = benchmark.open_es(loss, config)
    moved = jax.jit(update)(params, jax.random.key(0), jnp.array([3.0, 1.0]))
    # The norm of the gradient is √11; an error is about 0.02 √(11/2000).
    np.testing.assert_allclose(moved["w"], [1 - 0.06, -2 - 0.02], atol=0.006)
    np.testing.assert_allclose(moved["b"], 0.5 - 0.02, atol=0.006)


@pytest.mark.slow
def test_curved(tmp_path):
    """Wider draws make Σ larger."""
    config = curved.Config((500,), (1.0, 2.0), (0.2,), updates=60, runs=2)
    curved.main(dataclasses.replace(config, output=tmp_path))
    narrow, wide = json.loads((tmp_path / "curved.json").read_text())["table"]
    assert narrow["deviations"][1] < wide["deviations"][1] - 0.1


@pytest.mark.slow
def test_starts(tmp_path):
    """A row for every setting, of both kinds."""
    starts.main(starts.Config("digits", None, 4, 3, 1, tmp_path))
    table = json.loads((tmp_path / "starts.json").read_text())["table"]
    assert [len(row["at x"]) for row in table] == 4 * [1]
    assert all(0 <= row["carried over"][0] <= 1 for row in table)
