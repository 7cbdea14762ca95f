"""A study of methods whose draws several processes share, for `test_hosts`.

The first argument names them; the others are those of every experiment.
"""

from __future__ import annotations

import os
import sys

import orbax.checkpoint as ocp

from experiments.common.command import execute
from experiments.common.methods import Run
from experiments.common.options import Options
from experiments.common.study import study


def main(options: Options) -> None:
    """Train each of them."""
    updates = options.updates or 25
    runs = {
        "IS": Run("IS", "lejax", samples=100, hidden=20, updates=updates),
        "SGLD": Run("SGLD", samples=8, hidden=20, updates=updates),
        "HR": Run("HR", moves=4, hidden=20, updates=updates),
    }
    study("shared", {name: runs[name] for name in METHODS}, options, seeds=2)


def fail_at_the_second(save):
    """As on a disk that is full for a moment."""
    calls = []

    def failing(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("No space left on device")
        return save(*arguments, **options)

    return failing


if __name__ == "__main__":
    if "SECOND_SAVE_FAILS" in os.environ:
        manager = ocp.CheckpointManager
        manager.save = fail_at_the_second(manager.save)
    METHODS = sys.argv.pop(1).split(",")
    execute(main, __doc__)
