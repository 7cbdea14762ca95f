"""Runs that were interrupted, in every way, end as those that were left alone."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.benchmarks import kills
from experiments.common import checkpoints, data, results
from experiments.common.checkpoints import Checkpoints
from experiments.common.methods import Run
from experiments.common.training import train

pytestmark = pytest.mark.standard
SMALL = {"hidden": 6, "samples": 8, "moves": 2, "updates": 20, "evaluations": 5}
RUNS = {
    "IS": Run("IS", "lejax", outer="adam", **SMALL),
    "SGLD": Run("SGLD", "as written", tau=(0.01, 0.1), **SMALL),
    "HR": Run("HR", "as published", sgd_updates=3, **SMALL),
    "SGD": Run("SGD", outer="momentum", cosine=True, **SMALL),
}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None)


@pytest.fixture
def begun(tmp_path, digits):
    """A run that was left after three of its five blocks, and how to go on."""

    def keep(**changed):
        settings = {"run": "a", "seeds": 2, "every": 0.0, "resume": True} | changed
        return Checkpoints(tmp_path, **settings)

    run = RUNS["IS"]
    _leave(train(run, range(2), digits, keep()), blocks=3)
    expected = _last(train(run, range(2), digits))
    return keep, lambda kept: train(run, range(2), digits, kept), expected


def _leave(evaluations, blocks):
    for _ in range(blocks + 1):
        next(evaluations)


def _last(evaluations):
    *_, last = evaluations
    return last


@pytest.mark.parametrize(
    "name",
    [
        name if name == "SGD" else pytest.param(name, marks=pytest.mark.slow)
        for name in RUNS
    ],
)
def test_a_run_goes_on_bit_for_bit(name, tmp_path, digits):
    """Parameters, optimizer, keys, chains and data: the rest depends on all of them."""
    run = RUNS[name]

    def kept():
        return Checkpoints(tmp_path, 0.0, True, run=results.settings(run))

    whole = list(train(run, range(2), digits))
    begun = train(run, range(2), digits, kept())
    left = [next(begun) for _ in range(3)]
    resumed = list(train(run, range(2), digits, kept()))
    assert [e.updates for e in resumed] == [e.updates for e in whole]
    assert [e.fingerprint for e in resumed] == [e.fingerprint for e in whole]
    for a, b in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(a.accuracy, b.accuracy)
    # It went on, and did not begin anew.
    assert [e.seconds for e in resumed[1:3]] == [e.seconds for e in left[1:]]


@pytest.mark.slow
def test_the_last_few_are_kept(begun):
    keep, go_on, _ = begun
    kept = keep()
    _last(go_on(kept))
    steps = sorted(int(p.name) for p in kept.folder.iterdir() if p.name.isdigit())
    assert steps == [3, 4, 5]
    kept.remove()
    assert not kept.folder.exists()


@pytest.mark.slow
def test_no_resume_begins_anew(begun):
    keep, go_on, expected = begun
    kept = keep(resume=False)
    assert not kept.folder.exists()
    assert _last(go_on(kept)).fingerprint == expected.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("versions", {"jax": "0.1"}),
        ("layout", {"devices": 64, "processes": 8}),
        ("run", "another network"),
    ],
)
def test_a_checkpoint_of_something_else(begun, name, value):
    keep, go_on, _ = begun
    kept = keep()
    kept.about[name] = value
    with pytest.raises(SystemExit, match=rf"--resume: .* is of {name} .*--no-resume"):
        _last(go_on(kept))


def _truncate(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    assert files
    for path in files:
        os.truncate(path, path.stat().st_size // 2)


@pytest.mark.slow
def test_a_truncated_checkpoint(begun, capsys):
    """The one before is used, and said; where there is none, the run begins anew."""
    keep, go_on, expected = begun
    kept = keep()
    _truncate(kept.folder / "3")
    assert _last(go_on(kept)).fingerprint == expected.fingerprint
    said = capsys.readouterr().out
    assert f"{kept.folder / '3'} cannot be read" in said
    assert f"{kept.folder / '2'} cannot be read" not in said
    _last(go_on(keep()))
    assert "cannot be read" not in capsys.readouterr().out

    kept = keep()
    for folder in kept.folder.iterdir():
        if folder.name.isdigit():
            _truncate(folder)
    assert _last(go_on(kept)).fingerprint == expected.fingerprint
    assert capsys.readouterr().out.count("cannot be read") == checkpoints.KEPT


@pytest.mark.slow
def test_a_checkpoint_that_another_process_cannot_read(begun, capsys, monkeypatch):
    """None of them goes on from it."""
    keep, go_on, expected = begun
    kept = keep()
    answers, alone = [[True]], checkpoints.hosts.any_of
    monkeypatch.setattr(
        checkpoints.hosts,
        "any_of",
        lambda *flags: answers.pop() if answers else alone(*flags),
    )
    assert _last(go_on(kept)).fingerprint == expected.fingerprint
    said = capsys.readouterr().out
    assert f"{kept.folder / '3'} cannot be read" in said
    assert f"{kept.folder.name}: goes on from block 2." in said


@contextlib.contextmanager
def full_disk():
    """No file can grow."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.slow
def test_a_full_disk(begun, capsys):
    """The run goes on, says so, and keeps the last good checkpoint."""
    keep, go_on, expected = begun
    kept = keep()
    evaluations = go_on(kept)
    _leave(evaluations, blocks=3)
    with full_disk():
        fourth = next(evaluations)
    last = _last(evaluations)
    assert fourth.updates == 16
    assert last.fingerprint == expected.fingerprint
    assert "could not save a checkpoint" in capsys.readouterr().out
    steps = sorted(int(p.name) for p in kept.folder.iterdir() if p.name.isdigit())
    assert steps == [2, 3, 5]
    assert _last(go_on(keep())).fingerprint == expected.fingerprint


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """Three kills here; twenty in the committed results."""
    kills.main(kills.Config(kills=3, output=tmp_path))
    found = results.read(tmp_path / "kills.json")
    assert found["identical"]
    assert len(found["kills"]) == 3
    # It went on at least once, and did not only begin anew.
    starts = [kill["went_on_from_block"] for kill in found["kills"]]
    assert any([*starts, found["last_went_on_from_block"]])


@pytest.mark.slow
def test_sigterm_saves_and_exits(tmp_path):
    """The current block is finished and saved, also by workers; then it goes on."""

    def start(folder, workers):
        code = (
            "from experiments.benchmarks import kills\n"
            "from experiments.common import interruption\n"
            "with interruption.deferred():\n"
            f"    kills.run(kills.Path({str(folder)!r}), {workers}, every=0.5)"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")},
            stdout=subprocess.PIPE,
            text=True,
        )

    for workers in (1, 2):
        folder = tmp_path / str(workers)
        process = start(folder, workers)
        while not list(folder.glob("checkpoints/*/[0-9]*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGTERM, said
        assert "SIGTERM: finishing the current block" in said
        assert "Saved. The same command goes on from here." in said
        assert list(folder.glob("checkpoints/*/[0-9]*"))
        saved = kills.last_checkpoints(folder)
        process = start(folder, workers)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert kills.gone_on(said) == saved
        found = kills.fingerprints(folder)
        assert found is not None
        # With as many threads: by more of them sums may round apart.
        whole = tmp_path / f"{workers}, whole"
        undisturbed = start(whole, workers)
        undisturbed.communicate(timeout=300)
        assert undisturbed.returncode == 0
        assert kills.fingerprints(whole) == found
