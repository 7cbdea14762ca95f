"""A study of methods whose draws several processes share, for `test_hosts`.

The first argument names them; the others are those of every experiment.
"""

from __future__ import annotations

import sys

from experiments.command import execute
from experiments.methods import Run
from experiments.options import Options
from experiments.study import study


def main(options: Options) -> None:
    """Train each of them."""
    updates = options.updates or 25
    runs = {
        "IS": Run("IS", "lejax", samples=100, hidden=20, updates=updates),
        "SGLD": Run("SGLD", samples=8, hidden=20, updates=updates),
        "HR": Run("HR", moves=4, hidden=20, updates=updates),
    }
    study("shared", {name: runs[name] for name in METHODS}, options, seeds=2)


if __name__ == "__main__":
    METHODS = sys.argv.pop(1).split(",")
    execute(main, __doc__)
