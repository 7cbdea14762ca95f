"""The options that every experiment of the paper's study shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from experiments.data import Name


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


def parse(description: str | None, args: Sequence[str] | None = None) -> Options:
    """Read the command line, under an experiment's own description."""
    return tyro.cli(Options, args=args, description=description)
