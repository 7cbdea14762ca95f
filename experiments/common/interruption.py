"""SIGTERM and Ctrl-C: the current block is finished and saved before the end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class InterruptedRunError(Exception):
    """The run stopped where it was asked to; says whether it is saved."""


_signal = 0  # the one that came
_event: Any = None  # in a worker: what its parent sets


def requested() -> bool:
    """Whether to stop after the current block."""
    return bool(_signal) or (_event is not None and _event.is_set())


def follow(event: Any) -> None:
    """In a worker: stop when the parent says so, and not by a signal of its own."""
    global _event
    _event = event
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Make the first signal a request; the second stops at once.

    Raises:
        SystemExit: once the request was met, with the status of the signal.
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
        if _signal:  # it came when there was nothing left to save
            raise SystemExit(128 + _signal)
    except InterruptedRunError as interrupted:
        print(interrupted)
        raise SystemExit(128 + (_signal or signal.SIGTERM)) from None
    finally:
        _signal = 0
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
