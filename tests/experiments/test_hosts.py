"""Two processes on the loopback, with the CPU's collectives by gloo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.kills import gone_on, last_checkpoints
from experiments.common import hosts, results
from experiments.common.options import Options

pytestmark = pytest.mark.standard
ROOT = Path(__file__).parents[2]


@pytest.fixture
def start():
    """Start processes; none of them outlives its test."""
    started = []

    def start(*arguments):
        started.extend(both := pair(*arguments))
        return both

    yield start
    for process in started:
        process.kill()
        process.communicate()


def command(methods, output, *arguments):
    """One experiment, by one process."""
    study = [sys.executable, "-m", "tests.experiments.shared_study", methods]
    return [*study, "--data", "digits", "--output", output, *arguments]


def pair(*arguments):
    """Both processes of one experiment; the rank of the second by its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = ("--coordinator", address, "--processes", "2")
    return [
        subprocess.Popen(
            command(*arguments, *hosts) + ["--rank", str(rank)] * (rank == 0),
            cwd=ROOT,
            env=os.environ | ({"JAX_PROCESS_ID": "1"} if rank else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def wait_for_a_checkpoint(both, folder, after):
    """One that is not among those before."""
    patience = time.monotonic() + 240
    while last_checkpoints(folder) == after:
        assert time.monotonic() < patience
        assert all(process.poll() is None for process in both)
        time.sleep(0.1)


def test_what_is_sent_comes_back(tmp_path):
    """By one process: options as they are, states and keys through NumPy unchanged."""
    options = Options(output=tmp_path)
    with hosts.together(options) as mine:
        assert mine is options
    state = {
        "x": jnp.arange(3.0),
        "key": jax.random.key(3),
        "nan": jnp.float32(jnp.nan),
    }
    back = hosts.placed(hosts.whole(state), state)
    np.testing.assert_array_equal(back["x"], state["x"])
    assert np.isnan(back["nan"])
    assert (jax.random.bits(back["key"]) == jax.random.bits(state["key"])).all()
    assert hosts.of_first({"a": [1, None]}) == {"a": [1, None]}
    assert hosts.any_of(True, False) == [True, False]


@pytest.mark.slow
def test_two_processes_share_an_experiment(tmp_path, start, monkeypatch):
    """The same curves as by one; the first process alone speaks and writes.

    Where it cannot write a checkpoint both go on.
    """
    methods = "IS,SGLD,HR"
    monkeypatch.setenv("SECOND_SAVE_FAILS", "1")
    both = start(methods, tmp_path / "both", "--checkpoint-seconds", "0")
    said = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "Data:" in said[0][0]
    assert "(No space left on device): the run goes on" in said[0][0]
    # Gloo says of both that they are connected; nothing else comes from the second.
    assert [line for line in said[1][0].splitlines() if "[Gloo]" not in line] == []

    monkeypatch.delenv("SECOND_SAVE_FAILS")
    alone = command(methods, tmp_path / "alone")
    subprocess.run(alone, cwd=ROOT, check=True, timeout=400)
    found, expected = (
        results.read(tmp_path / folder / "shared.json")["runs"]
        for folder in ("both", "alone")
    )
    assert found.keys() == expected.keys()
    for label, record in found.items():
        # To the rounding of sums in another order: an image or two.
        np.testing.assert_allclose(
            record["accuracy"], expected[label]["accuracy"], atol=0.011
        )


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "method"), [(0, "IS"), (1, "SGLD")])
def test_the_other_stops_when_one_dies(tmp_path, start, victim, method):
    """Within a minute, with a message; the run then goes on from its checkpoint.

    And a signal to one of them is a request to both.
    """
    longer = (method, tmp_path, "--updates", "1000", "--checkpoint-seconds", "0")
    both = start(*longer)
    wait_for_a_checkpoint(both, tmp_path, after={})
    both[victim].send_signal(signal.SIGKILL)
    died = time.monotonic()
    _, said = both[1 - victim].communicate(timeout=60)
    assert time.monotonic() - died < 60
    assert both[1 - victim].returncode not in (0, None)
    assert "does not answer" in said or "another task died" in said, said
    both[victim].communicate()

    saved = last_checkpoints(tmp_path)
    both = start(*longer)
    wait_for_a_checkpoint(both, tmp_path, after=saved)
    both[victim].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [128 + signal.SIGTERM] * 2, said
    assert gone_on(said[0][0]) == saved
    assert "Saved. The same command goes on from here." in said[0][0]
