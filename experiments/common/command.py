"""An experiment as a command: its options, its end by a signal, its other processes.

And by its name, here or in a worker.
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
    """Run `main` under the options of the command line."""
    # In this order: `jax.distributed` takes SIGTERM for itself.
    with hosts.together(parse(description)) as options, interruption.deferred():
        main(options)


def run(name: str, options: Options) -> None:
    """Run an experiment of the paper."""
    importlib.import_module(f"experiments.paper.{name}").main(options)


def printed(name: str, options: Options, tick: Any) -> str:
    """Run an experiment in a worker, and hand over what it says."""
    del tick
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run(name, options)
    return said.getvalue()
