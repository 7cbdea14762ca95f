"""A progress bar, if tqdm is installed and the output is a terminal or a notebook."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any


def check_progress(progress: Any) -> None:
    """Refuse a `progress` that is not True, False or None."""
    if progress is not None and not isinstance(progress, bool):
        raise ValueError(
            f"progress must be True, False or None, got {progress!r}; "
            "leave it out for a bar in terminals and notebooks."
        )


class Progress:
    """A bar, or nothing: it shows compilation first, then updates."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def compiled(self, seconds: float) -> None:
        """Start the clock of the updates: time to compile is no part of it."""
        if self._bar is not None:
            self._bar.reset()
            self._bar.set_description(f"compiled in {seconds:.1f} s")

    def done(self, count: int, text: str) -> None:
        """Show how many updates are done, and `text` beside."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(count - self._bar.n)


@contextlib.contextmanager
def progress_bar(progress: bool | None, num_updates: int) -> Iterator[Progress]:
    """The progress of a run of so many updates."""
    library = _library(progress)
    if library is None:
        yield Progress()
        return
    with library.tqdm(total=num_updates, unit="update", desc="compiling") as bar:
        yield Progress(bar)


def _library(progress: bool | None) -> Any:
    """tqdm for terminals and notebooks; None if no bar is shown."""
    if progress is False or (progress is None and not _watched()):
        return None
    try:
        return importlib.import_module("tqdm.auto")
    except ImportError as error:
        if progress is None:
            return None
        raise ImportError(
            "progress=True needs tqdm, which is not installed; "
            "run python -m pip install tqdm, or leave progress out."
        ) from error


def _watched() -> bool:
    """Whether the output goes to a terminal, or to a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        return True
    # A program without a console has no stderr.
    return sys.stderr is not None and sys.stderr.isatty()
