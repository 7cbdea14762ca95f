"""Processes that share the runs of an experiment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import workers


def sleep(tick):
    tick(os.getpid())
    time.sleep(60)


def main():
    """Say which processes there are, and be busy."""
    tasks = {"a": (), "b": ()}
    for _ in workers.spread(sleep, tasks, 2, lambda pid: print(pid, flush=True)):
        pass


def alive(pid):
    """Whether a process is there, and is more than a name."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are seen in /proc")
def test_workers_end_with_their_parent():
    """Where it is killed without a chance to tell them."""
    command = [sys.executable, "-m", "tests.test_workers"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids))
        parent.send_signal(signal.SIGKILL)
    patience = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not any(map(alive, pids))


if __name__ == "__main__":
    main()
