"""One update by more and more devices: time, accuracy, and what they send each other.

The loop is the one that a user of `jax.pmap` writes: every device holds the parameters
and its share of the draws. On a CPU the devices are virtual ones, each held to a core
as far as there are cores; two processes of one device each are two hosts in small.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import lejax
from experiments import data, models, plotting, results
from experiments.collectives import collectives
from experiments.training import batch_indices
from experiments.workers import cores

BATCH = 20


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    data: data.Name = "auto"
    """Data set."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps its data."""
    samples: int = 4000
    """J, shared by all devices."""
    updates: int = 30
    """Of the training; as many again for each round of timing."""
    devices: tuple[int, ...] = (1, 2, 4)
    """Of one process."""
    rounds: int = 3
    """Every layout is timed once in each, in turn."""
    output: Path = Path("results")
    """Folder of the results."""


def trained(config: Config, devices: int) -> dict[str, Any]:
    """Train by `pmap` over so many devices of every process."""
    examples = data.load(config.data, config.data_dir)
    widths = (examples.train_images.shape[1], 200, 10)
    network = models.dense_classifier(widths, seed=0)
    tx = optax.chain(
        lejax.local_entropy(
            lejax.importance(config.samples, axis_name="devices"),
            0.01,
            key=jax.random.key(0),
        ),
        optax.sgd(0.1),
    )

    def block(carry: Any, rows: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        def update(carry: Any, row: jax.Array) -> tuple[Any, None]:
            params, state = carry
            batch = images[row], labels[row]
            updates, state = tx.update(
                optax.tree.zeros_like(params),
                state,
                params,
                value_fn=network.loss,
                batch=batch,
            )
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(update, carry, rows)[0]

    mine = jax.local_devices()[:devices] if jax.process_count() == 1 else None
    train = jax.pmap(
        block, axis_name="devices", in_axes=(0, None, None, None), devices=mine
    )
    rows = batch_indices(0, len(examples.train_labels), config.updates, BATCH)
    carry = jax.tree.map(
        lambda leaf: jnp.stack([leaf] * devices),
        (network.params, tx.init(network.params)),
    )
    inputs = rows, examples.train_images, examples.train_labels
    program = train.lower(carry, *inputs).compile().as_text()
    carry = jax.block_until_ready(train(carry, *inputs))
    began = time.perf_counter()
    jax.block_until_ready(train(carry, *inputs))
    seconds = time.perf_counter() - began
    params = jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], carry[0])
    accuracy = network.accuracy(params, (examples.test_images, examples.test_labels))
    return {
        "samples_per_second": config.updates * config.samples / seconds,
        "accuracy": float(accuracy),
        "exchanges": [tuple(c) for c in collectives(program)],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }


def child(config: Config, where: dict[str, Any]) -> None:
    """One process of a layout; the first prints what it found."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, where["cores"])
    if where["processes"] > 1:
        jax.distributed.initialize(
            where["coordinator"], where["processes"], where["rank"]
        )
    found = trained(config, where["devices"])
    if where["rank"] == 0:
        print(json.dumps(found))


def run(config: Config, devices: int, processes: int) -> dict[str, Any]:
    """Train in so many processes, on cores of their own, of so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    started = []
    for rank in range(processes):
        mine = cores()[rank:] if processes > 1 else cores()
        where = {
            "cores": mine[:devices],
            "devices": devices,
            "coordinator": f"127.0.0.1:{port}",
            "processes": processes,
            "rank": rank,
        }
        code = (
            "from pathlib import PosixPath\n"
            "from experiments.parallel import Config, child\n"
            f"child({config!r}, {where!r})"
        )
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | {"XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{processes} processes of {devices} devices failed.")
    return json.loads(outputs[0].splitlines()[-1])


def main(config: Config) -> None:
    """Time every layout in turn; print, plot and keep."""
    layouts = {f"{n} device{'s' * (n > 1)}": (n, 1) for n in config.devices}
    layouts["2 processes"] = (1, 2)
    found: dict[str, list[dict[str, Any]]] = {label: [] for label in layouts}
    for _ in range(config.rounds):
        for label, layout in layouts.items():
            found[label].append(run(config, *layout))

    first = next(iter(layouts))
    table = {}
    print(f"J = {config.samples}, {len(cores())} cores; {results.device_name()}")
    print("| layout | samples a second | ratio (least-largest) | accuracy | sent |")
    print("| --- | --- | --- | --- | --- |")
    for label, rounds in found.items():
        speeds = [one["samples_per_second"] for one in rounds]
        ratios = [
            mine / one["samples_per_second"]
            for mine, one in zip(speeds, found[first], strict=True)
        ]
        exchanged = rounds[0]["exchanges"]
        numbers = sum(numbers for _, numbers, _ in exchanged)
        table[label] = {
            "samples_per_second": speeds,
            "ratio": ratios,
            "accuracy": rounds[0]["accuracy"],
            "exchanges": exchanged,
        }
        print(
            f"| {label} | {np.median(speeds):.0f} | {np.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) | {rounds[0]['accuracy']:.4f} | "
            f"{numbers} numbers, d = {rounds[0]['parameters']} |"
        )
    results.write_json(config.output / "parallel.json", config, layouts=table)
    with plotting.figure(config.output / "parallel.png", 1, 1) as (_, axes):
        draw(axes[0, 0], table, config)


def draw(panel: Any, table: dict[str, Any], config: Config) -> None:
    """Speed by layout against that of one device, every round a point."""
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
    panel.set_title(
        f"importance sampling, J = {config.samples:,}, {config.updates} updates"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
