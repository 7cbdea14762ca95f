"""The figure of `flatness`: accuracy under noise, and flatness against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import plotting


def draw(path: Path, runs: Mapping[str, Any], sigmas: Sequence[float]) -> None:
    """A row for each budget."""
    with plotting.figure(path, len(runs), 3) as (_, axes):
        del axes
