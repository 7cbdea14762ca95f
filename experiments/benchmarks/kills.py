"""Checks that a run that is killed at random moments ends as an undisturbed one.

Importance sampling and Langevin chains run in a process that saves after every block.
It is killed by SIGKILL and started again. At the end it is compared with a run without
kills.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.common import results
from experiments.common.methods import Run
from experiments.common.options import Options
from experiments.common.study import study

RUNS = {
    "IS": Run("IS", "lejax", updates=250, samples=200, outer="momentum"),
    "SGLD": Run("SGLD", "lejax", updates=250, samples=40),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    kills: int = 20
    """Number of kills."""
    seed: int = 0
    """Seed of the times of the kills."""
    output: Path = Path("results")
    """Folder of the results."""


def run(folder: Path, workers: int = 1, every: float = 0.0) -> None:
    """The run to be killed, in a process of its own; it saves after `every` seconds."""
    options = Options(
        data="digits", output=folder, workers=workers, seeds=2, checkpoint_seconds=every
    )
    study("killed", RUNS, options, seeds=2)


def fingerprints(folder: Path) -> dict[str, str] | None:
    """Fingerprints of the final parameters, by run; None if they are not finished."""
    path = folder / "killed.json"
    runs = results.read(path)["runs"] if path.exists() else {}
    if len(runs) < len(RUNS):
        return None
    return {label: record["fingerprint"] for label, record in runs.items()}


def last_checkpoints(folder: Path) -> dict[str, int]:
    """The block of the last checkpoint of every unfinished run."""
    found = {}
    # Folders may vanish meanwhile, which `os.walk` ignores.
    for name, inside, _ in os.walk(folder / "checkpoints"):
        blocks = [int(block) for block in inside if block.isdigit()]
        if blocks and Path(name).parent.name == "checkpoints":
            found[Path(name).name] = max(blocks)
    return found


def gone_on(said: str) -> dict[str, int]:
    """The blocks from which a process went on, by run, from its output."""
    found = re.findall(r"(\w+): goes on from block (\d+)", said)
    return {run: int(block) for run, block in found}


def start(folder: Path) -> subprocess.Popen[str]:
    """Starts or continues the run."""
    code = (
        "from experiments.benchmarks import kills; "
        f"kills.run(kills.Path({str(folder)!r}))"
    )
    # Without a cache, most of a short run would be compilation.
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for the end of a process, which must succeed, and returns its output."""
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"A run ended with status {process.returncode}:\n{said}")
    return said


def main(config: Config) -> None:
    """Run once undisturbed, and once with kills; compare."""
    rng = np.random.default_rng(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder) / "alone", Path(folder) / "killed"
        began = time.monotonic()
        finish(start(alone))
        span = time.monotonic() - began
        expected = fingerprints(alone)
        print(f"Undisturbed: {span:.0f} s, {expected}")

        kills: list[dict[str, Any]] = []
        while len(kills) < config.kills:
            before = last_checkpoints(killed)
            began = time.monotonic()
            process = start(killed)
            # Alternate: soon after it saved again, and at any time.
            longest = 0.4 * span
            if len(kills) % 2 == 0:
                longest = 0.1 * span
                while last_checkpoints(killed) == before and process.poll() is None:
                    time.sleep(0.01)
            try:
                process.wait(rng.uniform(0, longest))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
                from_block = gone_on(said)
                assert from_block.items() <= before.items(), (from_block, before)
                kills.append(
                    {
                        "seconds": round(time.monotonic() - began, 2),
                        "went_on_from_block": from_block,
                        "left_at_block": last_checkpoints(killed),
                    }
                )
                print(f"killed: {kills[-1]}", flush=True)
            else:
                # It finished before it was killed: start again.
                finish(process)
                found = fingerprints(killed)
                assert found == expected, (found, expected)
                (killed / "killed.json").unlink()
        before = last_checkpoints(killed)
        from_block = gone_on(finish(start(killed)))
        assert from_block == before, (from_block, before)
        found = fingerprints(killed)
    same = found == expected
    print(
        f"{config.kills} kills: parameters {'the same' if same else 'DIFFER'}, {found}"
    )
    results.write_json(
        config.output / "kills.json",
        config,
        seconds_undisturbed=round(span, 1),
        kills=kills,
        last_went_on_from_block=from_block,
        fingerprints=found,
        identical=same,
    )
    if not same:
        raise SystemExit("The parameters differ from those of the undisturbed run.")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
