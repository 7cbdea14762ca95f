"""Results on disk: JSON with all settings that are needed to repeat the run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
from pathlib import Path
from typing import Any

import jax

# Options that do not change the results.
NO_SETTINGS = (
    "data_dir",
    "output",
    "workers",
    "resume",
    "checkpoint_seconds",
    "checkpoints",
    "coordinator",
    "processes",
    "rank",
)


def device_name() -> str:
    """The name of the device that JAX runs on."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind})"


def versions() -> dict[str, str]:
    """The versions of all packages that a result may depend on."""
    names = ("lejax", "jax", "optax", "flax", "matfree", "evosax")
    names += ("iterative-ensemble-smoother", "cma", "ioh")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def settings(config: Any) -> dict[str, Any]:
    """All fields of a configuration that change results, as read from a file."""
    fields = dataclasses.asdict(config)
    return json.loads(
        json.dumps(
            {k: v for k, v in fields.items() if k not in NO_SETTINGS}, default=str
        )
    )


def write_json(path: Path, config: Any, **results: Any) -> None:
    """Writes the results with the settings and the versions.

    The file is replaced in one step: an interruption leaves the file before.
    """
    head = {"settings": settings(config), "versions": versions()}
    _write(path, head | {"device": device_name()} | results)


def read(path: Path) -> dict[str, Any]:
    """The contents of a file."""
    return json.loads(path.read_text())


def kept(path: Path, config: Any, **expected: Any) -> dict[str, Any] | None:
    """The contents of a file, if it has these settings and these values."""
    if not path.exists():
        return None
    record = read(path)
    wanted = {"settings": settings(config), **expected}
    same = all(record.get(name) == value for name, value in wanted.items())
    return record if same else None


def add(path: Path, **results: Any) -> None:
    """Adds derived results to a file."""
    _write(path, read(path) | results)


def _write(path: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=1)
    # Put a list of numbers on one line.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text + "\n")
    os.replace(part, path)
