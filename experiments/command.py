"""An experiment as a command: its options, its end by a signal, its other processes."""

from __future__ import annotations

from collections.abc import Callable

from experiments import hosts, interruption
from experiments.options import Options, parse


def execute(main: Callable[[Options], None], description: str | None) -> None:
    """Run `main` under the options of the command line."""
    options = parse(description)
    with interruption.deferred(), hosts.together(options) as options:
        main(options)
