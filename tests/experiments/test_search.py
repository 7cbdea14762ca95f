"""The search of BBOB's functions against pycma, in its quick form."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("cma")
pytest.importorskip("ioh")

from experiments.applications.search import bbob
from experiments.applications.search.problems import TARGETS, Problems

pytestmark = pytest.mark.standard


@pytest.mark.slow
def test_quickly_and_again(tmp_path, capsys, monkeypatch):
    config = bbob.Config(quick=True, output=tmp_path)
    bbob.main(config)
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "search_bbob.json").read_text())
    (of_all,) = record["dimensions"].values()
    assert list(of_all) == list(bbob.METHODS)
    for name, of in of_all.items():
        assert f"| {name} |" in said
        (sphere,), _ = of["shares"]["100"]
        assert sphere >= 0.6
        assert (np.diff(of["curve"]) >= 0).all()
    assert (tmp_path / "search_bbob.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(bbob, "measured", None)
    bbob.main(config)
    assert json.loads((tmp_path / "search_bbob.json").read_text()) == record


def test_when_targets_were_reached():
    """Three evaluations of the sphere of which the third is not allowed."""
    problems = Problems(2, (1,), (3,), 2)
    best = np.array(problems.all[0].optimum.x)
    points = best + np.array([[np.sqrt(0.5), 0], [0.01, 0], [0, 0]])
    losses = problems.evaluate(0, points)
    np.testing.assert_allclose(losses[:2] - problems.least[0], [0.5, 1e-4], rtol=1e-6)
    assert np.isnan(losses[2])
    assert problems.left(0) == 0
    wanted = np.where(TARGETS >= 0.5, 1, np.where(TARGETS > 1e-4, 2, np.inf))
    near = np.isclose(TARGETS, 1e-4)  # rounding decides
    np.testing.assert_array_equal(problems.reached[0][~near], wanted[~near])
    np.testing.assert_allclose(problems.named(1), [2 / 5])
    np.testing.assert_allclose(problems.named(2), [4 / 5])


def test_the_error_of_a_difference():
    """Of the instances, within each function."""
    mine, peer = [[1.0, 0.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]]
    mean, half = bbob.difference(mine, peer)
    assert mean == pytest.approx(50)
    assert half == pytest.approx(1.96 * 100 * np.sqrt(0.5 / 2) / 2)
    assert np.isnan(bbob.difference([[1.0]], [[0.0]])[1])
