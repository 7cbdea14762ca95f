"""The comparison of covariances on a badly scaled quadratic, in a quick form."""

from __future__ import annotations

import json

import pytest

from experiments.applications.gradient_free import covariances
from experiments.applications.gradient_free.covariances import Config

pytestmark = pytest.mark.standard


@pytest.mark.slow
def test_quickly_and_again(tmp_path, capsys, monkeypatch):
    config = Config(dimensions=9, evaluations=2000, trials=1, seeds=2, output=tmp_path)
    covariances.main(config)
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "covariances.json").read_text())
    assert list(record["methods"]) == list(covariances.METHODS)
    for name, found in record["methods"].items():
        assert f"| {name} |" in said
        assert len(found["curves"]) == 2
    assert (tmp_path / "covariances.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(covariances, "tuned", None)
    covariances.main(config)
    assert json.loads((tmp_path / "covariances.json").read_text()) == record


def test_when_a_level_was_reached():
    of = {"evaluations_per_point": 10, "curves": [[1, 0.1, 1e-3], [1, 1, 0.05]]}
    assert covariances.until(of, 0.1).startswith("25 ±")
    assert covariances.until(of, 0.01) == "1 of 2 within 30"
