"""The time of `import lejax` and of `import optax`, in fresh processes in turn."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from pathlib import Path

import tyro

from experiments.common import results

MODULES = ("optax", "lejax")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    rounds: int = 15
    """Number of imports of each module."""
    output: Path = Path("results")
    """Folder of the results."""


def seconds(module: str) -> float:
    """The wall time of a process that imports a module and ends."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main(config: Config) -> None:
    """Measure in turn, print the ratio of the medians, and write it down."""
    for module in MODULES:  # compiles the modules, and fills the disk cache
        seconds(module)
    times: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(config.rounds):
        for module in MODULES:
            times[module].append(round(seconds(module), 4))
    medians = {module: statistics.median(found) for module, found in times.items()}
    ratio = medians["lejax"] / medians["optax"]
    for module, median in medians.items():
        spread = f"{min(times[module]):.2f} to {max(times[module]):.2f}"
        print(f"import {module}: median {median:.2f} s ({spread})")
    print(f"ratio of the medians: {ratio:.3f}")
    results.write_json(
        config.output / "import_time.json", config, seconds=times, ratio=round(ratio, 4)
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
