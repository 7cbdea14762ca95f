"""Results on disk: JSON with everything needed to run it again."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax

PLACES = ("data_dir", "output")


def device_name() -> str:
    """The device that JAX runs on, as its maker calls it."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind})"


def write_json(path: Path, config: Any, **results: Any) -> None:
    """Write the settings, but for places on disk, and versions beside the results."""
    settings = dataclasses.asdict(config)
    record = {
        "settings": {k: v for k, v in settings.items() if k not in PLACES},
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("lejax", "jax", "optax", "flax")
        },
        "device": device_name(),
        **results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")
