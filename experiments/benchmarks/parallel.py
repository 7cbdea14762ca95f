"""One update on several numbers of devices: time, accuracy, and communication.

The loop is that of a user of `jax.pmap`: every device holds the parameters and its
share of the draws. On a CPU the devices are virtual. Each has a core of its own, as far
as there are cores. Two processes of one device each stand for two hosts.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import lejax
from experiments.common import data, models, plotting, results
from experiments.common.collectives import collectives
from experiments.common.training import batch_indices, descend
from experiments.common.workers import cores

BATCH = 20


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    data: data.Name = "auto"
    """Data set."""
    data_dir: str | None = None
    """Folder of tensorflow-datasets; by default its own."""
    samples: tuple[int, ...] = (4000, 100_000)
    """J, shared by all devices: one for short updates, and one for long updates."""
    evaluations: int = 300_000
    """Evaluations of a training, in updates of J each; the timed one has as many."""
    devices: tuple[int, ...] = (1, 2, 4)
    """Numbers of devices of one process."""
    rounds: int = 15
    """Timed rounds; each has one turn of every layout."""
    output: Path = Path("results")
    """Folder of the results."""


def trained(
    config: Config, samples: int, devices: int
) -> tuple[dict[str, Any], Callable[[], float]]:
    """Train by `pmap` over these devices of every process, and time a second run."""
    examples = data.load(config.data, config.data_dir)
    widths = (examples.train_images.shape[1], 200, 10)
    network = models.dense_classifier(widths, seed=0)
    tx = optax.chain(
        lejax.local_entropy(
            lejax.importance(samples, axis_name="devices"),
            0.01,
            key=jax.random.key(0),
        ),
        optax.sgd(0.1),
    )

    def block(carry: Any, rows: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        return descend(tx, network.loss, carry, rows, images, labels)

    mine = jax.local_devices()[:devices] if jax.process_count() == 1 else None
    train = jax.pmap(
        block, axis_name="devices", in_axes=(0, None, None, None), devices=mine
    )
    updates = config.evaluations // samples
    rows = batch_indices(0, len(examples.train_labels), updates, BATCH)
    carry = jax.tree.map(
        lambda leaf: jnp.stack([leaf] * devices),
        (network.params, tx.init(network.params)),
    )
    inputs = rows, examples.train_images, examples.train_labels
    program = train.lower(carry, *inputs).compile().as_text()
    carry = jax.block_until_ready(train(carry, *inputs))

    def timed() -> float:
        began = time.perf_counter()
        jax.block_until_ready(train(carry, *inputs))
        return time.perf_counter() - began

    timed()
    params = jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], carry[0])
    accuracy = network.accuracy(params, (examples.test_images, examples.test_labels))
    found = {
        "accuracy": float(accuracy),
        "exchanges": [tuple(c) for c in collectives(program)],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }
    return found, timed


def child(config: Config, where: dict[str, Any]) -> None:
    """One process of a layout: prints its result, then its seconds for every input."""
    if where["processes"] > 1:
        jax.distributed.initialize(
            where["coordinator"], where["processes"], where["rank"]
        )
    found, timed = trained(config, where["samples"], where["devices"])
    print(json.dumps(found), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": timed()}), flush=True)


def start(
    config: Config, samples: int, devices: int, processes: int
) -> list[subprocess.Popen[str]]:
    """Starts these processes, on cores of their own, with these devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    started = []
    for rank in range(processes):
        mine = cores()[rank:] if processes > 1 else cores()
        where = {
            "samples": samples,
            "devices": devices,
            "coordinator": f"127.0.0.1:{port}",
            "processes": processes,
            "rank": rank,
        }
        # Set the cores before the imports, which start threads.
        code = (
            "import os\n"
            "if hasattr(os, 'sched_setaffinity'):\n"
            f"    os.sched_setaffinity(0, {mine[:devices]!r})\n"
            "from pathlib import PosixPath\n"
            "from experiments.benchmarks.parallel import Config, child\n"
            f"child({config!r}, {where!r})"
        )
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | {"XLA_FLAGS": flags},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    return started


def told(layout: list[subprocess.Popen[str]]) -> dict[str, Any]:
    """The next output of the first process of a layout, after all have printed it."""
    said = []
    for process in layout:
        assert process.stdout
        lines = (line for line in process.stdout if line[0] == "{")  # not gloo's
        said.append(next(lines, None))
    if None in said:
        raise SystemExit(f"A process of {len(layout)} ended; its reason is above.")
    return json.loads(said[0])


def timed(layout: list[subprocess.Popen[str]]) -> float:
    """The seconds of one training in this layout, while the others are idle."""
    for process in layout:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    return told(layout)["seconds"]


def timings(config: Config, samples: int) -> dict[str, dict[str, Any]]:
    """Every layout, timed in turn: samples per second, and their ratio to the first."""
    layouts = {f"{n} device{'s' * (n > 1)}": (n, 1) for n in config.devices}
    layouts["2 processes"] = (1, 2)
    running = {
        label: start(config, samples, *layout) for label, layout in layouts.items()
    }
    try:
        found = {label: told(layout) for label, layout in running.items()}
        rounds = [
            {label: timed(layout) for label, layout in running.items()}
            for _ in range(config.rounds)
        ]
    finally:
        for process in itertools.chain(*running.values()):
            process.kill()
    evaluations = config.evaluations // samples * samples
    first = next(iter(layouts))
    return {
        label: one
        | {
            "samples_per_second": [evaluations / r[label] for r in rounds],
            "ratio": [r[first] / r[label] for r in rounds],
        }
        for label, one in found.items()
    }


def main(config: Config) -> None:
    """Time every layout; print, plot and keep."""
    print(f"{len(cores())} cores; {results.device_name()}")
    print("| J | layout | samples a second | ratio (least-largest) | accuracy | sent |")
    print("| --- | --- | --- | --- | --- | --- |")
    tables = {}
    for samples in config.samples:
        tables[samples] = timings(config, samples)
        for label, one in tables[samples].items():
            ratio, numbers = one["ratio"], sum(n for _, n, _ in one["exchanges"])
            print(
                f"| {samples} | {label} | {np.median(one['samples_per_second']):.0f} | "
                f"{np.median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f}) | "
                f"{one['accuracy']:.4f} | "
                f"{numbers} numbers, d = {one['parameters']} |"
            )
    results.write_json(config.output / "parallel.json", config, layouts=tables)
    path = config.output / "parallel.png"
    with plotting.figure(path, 1, len(tables)) as (_, axes):
        for panel, (samples, table) in zip(axes[0], tables.items(), strict=True):
            draw(panel, table, samples)


def draw(panel: Any, table: dict[str, Any], samples: int) -> None:
    """Speed by layout relative to one device, with a point for every round."""
    labels = list(table)
    for place, label in enumerate(labels):
        ratios = table[label]["ratio"]
        panel.bar(place, np.median(ratios), color="#2a78d6", width=0.6)
        panel.plot([place] * len(ratios), ratios, "o", color="#111111", markersize=4)
        accuracy = f"accuracy\n{table[label]['accuracy']:.4f}"
        panel.text(place, 0.05, accuracy, ha="center", color="white", fontsize=11)
    panel.axhline(len(cores()), color="#888888", linewidth=1)
    panel.text(-0.4, len(cores()), f"{len(cores())} cores", va="bottom", fontsize=10)
    panel.set_xticks(range(len(labels)), labels)
    panel.set_ylabel("samples a second, to one device")
    panel.set_ylim(0, len(cores()) * 1.15)
    panel.set_title(f"importance sampling, J = {samples:,}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
