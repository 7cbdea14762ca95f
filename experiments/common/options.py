"""The options that every experiment of the paper's study shares."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import tyro

from experiments.common.data import Name


def _environment(name: str) -> int | None:
    value = os.environ.get(name)
    try:
        return None if value is None else int(value)
    except ValueError:
        raise SystemExit(f"{name} must be a whole number, got {value!r}.") from None


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen; everything else is the paper's, or written in the file."""

    data: Name = "auto"
    """Data set; auto is MNIST where it is prepared already, else digits."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps its data; its own default where not given."""
    seeds: int | None = None
    """Runs of every method: seeds 0, 1, …; by default as many as the file says."""
    updates: int | None = None
    """Parameter updates, a multiple of 5; by default as many as the file says."""
    output: Path = Path("results")
    """Folder of the results. What is there already is not computed again."""
    quick: bool = False
    """A run of seconds, to see that everything works: its figures mean nothing."""
    workers: int | None = None
    """Processes that share the runs; by default one to a core, and one with --quick."""
    resume: bool = True
    """Go on from the checkpoints of unfinished runs, or begin these anew."""
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints of a run, at the least."""
    checkpoints: Path | None = None
    """Folder of the checkpoints; by default in the output folder."""
    coordinator: str | None = os.environ.get("JAX_COORDINATOR_ADDRESS")
    """Address and port of the first of several processes that share the draws."""
    processes: int | None = _environment("JAX_NUM_PROCESSES")
    """How many these are."""
    rank: int | None = _environment("JAX_PROCESS_ID")
    """Which of them this is: 0, 1, …"""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.seeds is not None and self.seeds < 1:
            raise SystemExit(f"--seeds must be at least 1, got {self.seeds}.")
        if self.workers is not None and self.workers < 1:
            raise SystemExit(f"--workers must be at least 1, got {self.workers}.")
        if self.updates is not None and (self.updates < 5 or self.updates % 5):
            raise SystemExit(
                f"--updates must be a positive multiple of 5, got {self.updates}: "
                "tables have a column for each fifth of them."
            )
        if self.checkpoint_seconds < 0:
            raise SystemExit(
                f"--checkpoint-seconds must be at least 0, got "
                f"{self.checkpoint_seconds}; 0 is after every block."
            )
        where = (self.coordinator, self.processes, self.rank)
        if any(x is None for x in where) != all(x is None for x in where):
            raise SystemExit(
                f"--coordinator {self.coordinator} --processes {self.processes} --rank "
                f"{self.rank}: give all three, or none, as options or in "
                "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
            )
        if self.rank is not None and not 0 <= self.rank < (self.processes or 0):
            raise SystemExit(
                f"--rank must be from 0 to {(self.processes or 0) - 1}, one less than "
                f"--processes, got {self.rank}."
            )


def parse(description: str | None, args: Sequence[str] | None = None) -> Options:
    """Read the command line, under an experiment's own description."""
    return tyro.cli(Options, args=args, description=description)
