"""Ctrl-C ends a run between two blocks, with the result so far."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """A function that returns whether Ctrl-C was pressed. A second one raises.

    An exception in the middle of a block would lose the run: the block has taken the
    memory of its parameters.
    """
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # Only the main thread receives signals; a handler of the user's stays in place.
    if threading.current_thread() is not threading.main_thread() or not default:
        yield lambda: False
        return
    pressed = threading.Event()

    def note(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
