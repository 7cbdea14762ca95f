"""Four virtual devices, in a process of its own: they are counted when JAX starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOUR = "--xla_force_host_platform_device_count=4"
TESTS = Path(__file__).parents[1]


def run_on_four_devices(file: str) -> None:
    """Run a test file as a program on them."""
    subprocess.run(
        [sys.executable, file],
        env=os.environ
        | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FOUR}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(TESTS),
        },
        cwd=Path(file).parent,
        check=True,
        timeout=600,
    )
