"""An experiment as a command: its options, its end by a signal, its other processes."""

from __future__ import annotations

from collections.abc import Callable

from experiments import hosts, interruption
from experiments.options import Options, parse


def execute(main: Callable[[Options], None], description: str | None) -> None:
    """Run `main` under the options of the command line."""
    # In this order: `jax.distributed` takes SIGTERM for itself.
    with hosts.together(parse(description)) as options, interruption.deferred():
        main(options)
