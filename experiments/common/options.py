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
    """The options; everything else is as in the paper, or stands in the file."""

    data: Name = "auto"
    """Data set; auto is MNIST if it is prepared already, else digits."""
    data_dir: str | None = None
    """Folder of tensorflow-datasets; by default its own."""
    seeds: int | None = None
    """Number of seeds of every method, 0, 1, …; the default is set in each file."""
    updates: int | None = None
    """Parameter updates, a multiple of 5; the default is set in each file."""
    output: Path = Path("results")
    """Folder of the results. Results that exist are not computed again."""
    quick: bool = False
    """A run of seconds, as a test that everything works; its results mean nothing."""
    workers: int | None = None
    """Processes that share the runs; by default one for each core, or one if quick."""
    resume: bool = True
    """Go on from the checkpoints of unfinished runs, or start them again."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints of a run."""
    checkpoints: Path | None = None
    """Folder of the checkpoints; by default in the output folder."""
    coordinator: str | None = os.environ.get("JAX_COORDINATOR_ADDRESS")
    """Address and port of the first of several processes that share the draws."""
    processes: int | None = _environment("JAX_NUM_PROCESSES")
    """Number of these processes."""
    rank: int | None = _environment("JAX_PROCESS_ID")
    """Number of this process among them: 0, 1, …"""

    def __post_init__(self) -> None:
        """Raises for options that cannot be run."""
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
    """Reads the command line, with an experiment's description."""
    return tyro.cli(Options, args=args, description=description)
