"""A run that is killed at random moments ends as one that is left alone.

Importance sampling and Langevin chains, in a process that saves after every block; it
is killed by SIGKILL and started again, and at last compared with an undisturbed one.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

from experiments import results
from experiments.methods import Run
from experiments.options import Options
from experiments.study import study

RUNS = {
    "IS": Run("IS", "lejax", updates=250, samples=200, outer="momentum"),
    "SGLD": Run("SGLD", "lejax", updates=250, samples=40),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is done."""

    kills: int = 20
    """How often the run is killed."""
    seed: int = 0
    """Of the moments."""
    output: Path = Path("results")
    """Folder of the results."""


def run(folder: Path, workers: int = 1, every: float = 0.0) -> None:
    """What is killed: in a process of its own; it saves after `every` seconds."""
    options = Options(
        data="digits", output=folder, workers=workers, seeds=2, checkpoint_seconds=every
    )
    study("killed", RUNS, options, seeds=2)


def fingerprints(folder: Path) -> dict[str, str] | None:
    """Those of the final parameters, by run; None where it is not finished."""
    path = folder / "killed.json"
    runs = results.read(path)["runs"] if path.exists() else {}
    if len(runs) < len(RUNS):
        return None
    return {label: record["fingerprint"] for label, record in runs.items()}


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The run, begun or gone on with."""
    code = f"from experiments import kills; kills.run(kills.Path({str(folder)!r}))"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def main(config: Config) -> None:
    """Run once undisturbed, and once with kills; compare."""
    rng = np.random.default_rng(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder) / "alone", Path(folder) / "killed"
        began = time.monotonic()
        assert start(alone).wait() == 0
        span = time.monotonic() - began
        expected = fingerprints(alone)
        print(f"Undisturbed: {span:.0f} s, {expected}")

        moments: list[float] = []
        steps: list[int] = []
        while len(moments) < config.kills:
            process = start(killed)
            wait = float(rng.uniform(0.1, 1.0) * span)
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                moments.append(round(wait, 2))
                saved = killed.glob("checkpoints/*/*")
                steps.append(
                    max((int(p.name) for p in saved if p.name.isdigit()), default=0)
                )
                print(
                    f"killed after {wait:.1f} s, at a checkpoint of block {steps[-1]}"
                )
            else:
                # It finished before: from the start once more.
                found = fingerprints(killed)
                assert found == expected, (found, expected)
                (killed / "killed.json").unlink()
        assert start(killed).wait() == 0
        found = fingerprints(killed)
    same = found == expected
    print(
        f"{config.kills} kills: parameters {'the same' if same else 'DIFFER'}, {found}"
    )
    results.write_json(
        config.output / "kills.json",
        config,
        seconds_undisturbed=round(span, 1),
        killed_after=moments,
        checkpoint_of_block=steps,
        fingerprints=found,
        identical=same,
    )
    if not same:
        raise SystemExit("The parameters differ from those of the undisturbed run.")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
