"""The comparison of controlled with fixed τ, in its quick form on the digits."""

from __future__ import annotations

import json

import numpy as np
import optax
import pytest
from cases.runs import KEY, bowl

import lejax
from experiments.applications import tau
from experiments.common.methods import Controlled, optimizer
from experiments.common.options import Options
from experiments.common.study import stored

pytestmark = pytest.mark.standard


def test_a_controlled_run_takes_the_paper_s_step():
    run = Controlled("IS", "lejax", samples=40, updates=10, share=(0.6, 0.8), gain=0.2)
    share = optax.linear_schedule(0.6, 0.8, 10)
    tau = lejax.target_share(share, 0.03, gain=0.2)
    by_hand = lejax.local_entropy(lejax.importance(40), tau, key=KEY, displacement=True)
    x = np.ones(3, np.float32)
    made = optimizer(run, 0.03, None, KEY)
    found, _ = made.update(None, made.init(x), x, value_fn=bowl)
    step, _ = by_hand.update(None, by_hand.init(x), x, value_fn=bowl)
    np.testing.assert_allclose(found, -step, rtol=1e-6)


@pytest.mark.slow
def test_quickly(monkeypatch, tmp_path, capsys):
    """Chosen on the validation split, trained on all, compared by seed."""
    monkeypatch.setattr(tau, "TAUS", (0.01, 1.0))
    monkeypatch.setattr(
        tau, "SHARES", {"constant": ((0.3, 0.3),), "rising": ((0.1, 0.7),)}
    )
    monkeypatch.setattr(tau, "GAINS", (0.1,))
    tau.main(Options(quick=True, data="digits", output=tmp_path))
    tuned = json.loads((tmp_path / "control_tuning.json").read_text())["runs"]
    assert all(run["settings"]["validation"] for run in tuned.values())
    kept = json.loads((tmp_path / "control.json").read_text())
    fixed, *controlled = kept["runs"].values()
    assert not any(run["settings"]["validation"] for run in kept["runs"].values())
    for run in controlled:
        assert run["settings"]["tau"] == [0.01, 100.0]
        assert np.shape(run["tau"]) == (2, 2, 5)
        np.testing.assert_array_less(0, run["tau"])
    ends = np.array([*fixed["accuracy"], *controlled[0]["accuracy"]])[..., -1]
    top = ends[:2][ends[:2].mean(1).argmax()]
    rows = kept["table"]
    assert [row["tau"] for row in rows] == [0.01, 1.0] + 2 * [0.01, 100.0]
    for row, end in zip(rows, ends, strict=False):
        assert row["mean"] == pytest.approx(end.mean(), abs=1e-4)
        assert row["difference"] == pytest.approx((end - top).mean(), abs=1e-4)
    assert (tmp_path / "control.png").exists()
    assert "difference to the best τ" in capsys.readouterr().out


def test_runs_of_another_kind_are_passed_over(tmp_path):
    """flatness.json calls the parts of its comparison runs as well."""
    record = {"data": "digits", "runs": {"equal epochs": {"SGD": 1}}}
    (tmp_path / "other.json").write_text(json.dumps(record))
    assert list(stored(Options(output=tmp_path), "digits")) == []
