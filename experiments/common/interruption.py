"""SIGTERM and Ctrl-C: a run finishes and saves its current block, then ends."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class InterruptedRunError(Exception):
    """The run stopped at a signal; the message says whether it is saved."""


_signal = 0  # the number of the signal received
_event: Any = None  # in a worker: the event that its parent sets


def requested() -> bool:
    """Whether to stop after the current block."""
    return bool(_signal) or (_event is not None and _event.is_set())


def follow(event: Any) -> None:
    """In a worker: stops if the parent sets the event, not at a signal of its own."""
    global _event
    _event = event
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Makes the first signal a request to stop; the second one stops at once.

    Raises:
        SystemExit: after the requested stop, with the status of the signal.
    """
    global _signal

    def request(number: int, frame: Any) -> None:
        global _signal
        del frame
        if _signal:
            raise KeyboardInterrupt
        _signal = number
        print(
            f"\n{signal.Signals(number).name}: finishing the current block; "
            "once more to stop at once.",
            flush=True,
        )

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, request) for number in numbers]
    try:
        yield
        if _signal:  # received with nothing left to save
            raise SystemExit(128 + _signal)
    except InterruptedRunError as interrupted:
        print(interrupted)
        raise SystemExit(128 + (_signal or signal.SIGTERM)) from None
    finally:
        _signal = 0
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
