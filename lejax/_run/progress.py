"""A progress bar, where there is a library for it and somebody to see it."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any


def check_progress(progress: Any) -> None:
    """Refuse what is no answer to whether there shall be a bar."""
    if progress is not None and not isinstance(progress, bool):
        raise ValueError(
            f"progress must be True, False or None, got {progress!r}; "
            "leave it out for a bar in terminals alone."
        )


def _library(progress: bool | None) -> Any:
    """The module, None where no bar is wanted."""
    # A program without a console has no stderr.
    seen = sys.stderr is not None and sys.stderr.isatty()
    if progress is False or (progress is None and not seen):
        return None
    try:
        return importlib.import_module("tqdm")
    except ImportError as error:
        if progress is None:
            return None
        raise ImportError(
            "progress=True needs tqdm, which is not installed; "
            "run python -m pip install tqdm, or leave progress out."
        ) from error


@contextlib.contextmanager
def progress_bar(
    progress: bool | None, num_updates: int
) -> Iterator[Callable[[int, str], None]]:
    """A function to be told how many updates are done, and what to write beside."""
    library = _library(progress)
    if library is None:
        yield lambda done, text: None
        return
    with library.tqdm(total=num_updates, unit="update") as bar:

        def show(done: int, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)

        yield show
