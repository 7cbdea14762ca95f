"""Runs an experiment as a command, with options, signals and several processes.

An experiment can also be run by its name, here or in a worker.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any

from experiments.common import hosts, interruption
from experiments.common.options import Options, parse


def execute(main: Callable[[Options], None], description: str | None) -> None:
    """Runs `main` with the options of the command line."""
    # In this order, as `jax.distributed` installs its own handler of SIGTERM.
    with hosts.together(parse(description)) as options, interruption.deferred():
        main(options)


def run(name: str, options: Options) -> None:
    """Runs an experiment of the paper."""
    importlib.import_module(f"experiments.paper.{name}").main(options)


def printed(name: str, options: Options, tick: Any) -> str:
    """Runs an experiment in a worker, and returns what it prints."""
    del tick
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run(name, options)
    return said.getvalue()
