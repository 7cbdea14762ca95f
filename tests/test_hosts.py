"""Two processes on the loopback, with the CPU's collectives by gloo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import results

pytestmark = pytest.mark.standard


@pytest.fixture
def start():
    """Start processes; none of them outlives its test."""
    started = []

    def start(output, *arguments):
        started.extend(both := pair(output, *arguments))
        return both

    yield start
    for process in started:
        process.kill()
        process.communicate()


def pair(output, *arguments, module="experiments.chains"):
    """Both processes of one experiment; the rank of the second by its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", module, "--data", "digits", "--output", output]
    command += [*arguments, "--coordinator", address, "--processes", "2"]
    return [
        subprocess.Popen(
            command + ["--rank", str(rank)] * (rank == 0),
            env=os.environ | ({"JAX_PROCESS_ID": "1"} if rank else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def last_checkpoint(folder):
    names = [path.name for path in folder.glob("checkpoints/*/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def test_two_processes_share_an_experiment(tmp_path, start):
    """The same curves as by one; the first process alone speaks and writes."""
    quick = ("--quick", "--seeds", "2")
    both = start(tmp_path / "both", *quick)
    said = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "SGLD" in said[0][0]
    # Gloo says of both that they are connected; nothing else comes from the second.
    assert [line for line in said[1][0].splitlines() if "[Gloo]" not in line] == []

    command = [sys.executable, "-m", "experiments.chains", "--data", "digits", *quick]
    subprocess.run([*command, "--output", tmp_path / "alone"], check=True, timeout=400)
    found, expected = (
        results.read(tmp_path / folder / "chains.json")["runs"]
        for folder in ("both", "alone")
    )
    assert found.keys() == expected.keys()
    for label, record in found.items():
        # To the rounding of sums in another order: an image or two.
        np.testing.assert_allclose(
            record["accuracy"], expected[label]["accuracy"], atol=0.011
        )


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_stop_when_one_dies(tmp_path, start, victim):
    """Within a minute, with a message; the run then goes on from its checkpoint."""
    longer = ("--updates", "500", "--seeds", "1", "--checkpoint-seconds", "0")
    both = start(tmp_path, *longer)
    deadline = time.monotonic() + 240
    while not last_checkpoint(tmp_path):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in both)
        time.sleep(0.2)
    both[victim].send_signal(signal.SIGKILL)
    died = time.monotonic()
    _, said = both[1 - victim].communicate(timeout=60)
    assert time.monotonic() - died < 60
    assert both[1 - victim].returncode not in (0, None)
    assert "does not answer" in said or "another task died" in said, said
    both[victim].communicate()

    saved = last_checkpoint(tmp_path)
    both = start(tmp_path, *longer)
    while last_checkpoint(tmp_path) <= saved:
        assert time.monotonic() < deadline + 240
        assert all(process.poll() is None for process in both)
        time.sleep(0.2)
