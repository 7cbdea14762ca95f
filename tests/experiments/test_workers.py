"""Processes that share the runs of an experiment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import __main__ as whole
from experiments.common import interruption, workers
from experiments.common.options import Options


def sleep(tick):
    tick(os.getpid())
    time.sleep(60)


def main():
    """Say which processes there are, and be busy."""
    tasks = {"a": (), "b": ()}
    with interruption.deferred():
        for _ in workers.spread(sleep, tasks, 2, lambda pid: print(pid, flush=True)):
            pass


def alive(pid):
    """Whether a process is there, and is more than a name."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def kill_the_parent(parent, pids):
    """Without a chance to tell its workers."""
    del pids
    parent.send_signal(signal.SIGKILL)


def kill_a_worker(parent, pids):
    """The parent says so, and does not wait for the other."""
    os.kill(pids[0], signal.SIGKILL)
    _, said = parent.communicate(timeout=30)
    assert parent.returncode == 1
    assert "A worker process died" in said
    assert "Traceback" not in said


def interrupt_twice(parent, pids):
    """Ctrl-C, by a terminal to all of them: first a request, then an order."""
    parent.send_signal(signal.SIGINT)
    assert "SIGINT: finishing the current block" in parent.stdout.readline() + (
        parent.stdout.readline()
    )
    for pid in pids:
        os.kill(pid, signal.SIGINT)
        assert alive(pid)
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=30)
    assert parent.returncode == -signal.SIGINT


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are seen in /proc")
@pytest.mark.parametrize("end", [kill_the_parent, kill_a_worker, interrupt_twice])
def test_workers_end_with_their_parent(end):
    """However it ends, no worker keeps its core busy."""
    command = [sys.executable, "-m", "tests.experiments.test_workers"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids))
        end(parent, pids)
    patience = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not any(map(alive, pids))


def die(tick):
    """As the kernel ends a process that takes too much memory."""
    del tick
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_death_that_only_the_pool_sees(monkeypatch):
    """A process whose files are closed may still count as alive: nothing is lost."""
    monkeypatch.setattr(multiprocessing, "active_children", list)
    with pytest.raises(SystemExit, match="A worker process died"):
        list(workers.spread(die, {"a": (), "b": ()}, 2, print))


@pytest.mark.parametrize("at", ["theorems_3_1_4_1", "tuning"])
def test_the_whole_study_stops_between_experiments(monkeypatch, tmp_path, at, capsys):
    """A signal that comes while one runs that has no blocks is met at its end."""
    ran = []

    def run(name, *rest):
        ran.append(name)
        if name == at:
            signal.raise_signal(signal.SIGTERM)
        return ""

    monkeypatch.setattr(whole, "printed", run)
    monkeypatch.setattr(whole, "run", run)
    with pytest.raises(SystemExit) as ended, interruption.deferred():
        whole.main(Options(quick=True, data="digits", output=tmp_path))
    assert ended.value.code == 128 + signal.SIGTERM
    assert ran == list(whole.EXPERIMENTS[: whole.EXPERIMENTS.index(at) + 1])
    assert "The same command goes on from here." in capsys.readouterr().out


if __name__ == "__main__":
    main()
