"""Training without back-propagation: forward passes alone, every example its own draws.

`score_function(credit=True)` at the head of Adam with a cosine rate; and, for what it
lacks, back-propagation in its place.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

import lejax
from experiments import data, models, plotting, results
from experiments.methods import backpropagation
from experiments.training import batch_indices, descend


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained."""

    data: data.Name = "auto"
    """Data set."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps its data."""
    samples: int = 64
    """J, draws of every example in an update."""
    antithetic: bool = False
    """Whether the draws come in pairs: half the normals, but twice the noise where the
    losses are nearly linear in them."""
    batch_size: int = 100
    """Examples of an update."""
    tau: float = 0.01
    """Variance of the smoothing."""
    rate: float = 0.003
    """Of Adam, at the start of the cosine."""
    updates: tuple[int, int, int] = (4000, 30_000, 6000)
    """Of the short, the long and the deep run."""
    evaluations: int = 10
    """Test accuracies along each run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, batches and draws."""
    output: Path = Path("results")
    """Folder of the results."""


class Curve(NamedTuple):
    """One run: updates so far, seconds of training so far, test accuracy."""

    updates: list[int]
    seconds: list[float]
    accuracy: list[float]


def trained(
    config: Config,
    dataset: data.Dataset,
    hidden: int,
    updates: int,
    seed: int,
    heat: bool,
) -> Curve:
    """Train a network of so many hidden layers of 200 units."""
    inputs, classes = dataset.train_images.shape[1], int(dataset.train_labels.max()) + 1
    widths = (inputs, *(200,) * hidden, classes)
    network = models.dense_classifier(widths, seed)
    head: Any = backpropagation()
    if heat:
        sampler = lejax.score_function(
            config.samples, antithetic=config.antithetic, credit=True
        )
        head = lejax.heat(sampler, config.tau, key=jax.random.key(seed))
    schedule = optax.cosine_decay_schedule(config.rate, updates)
    tx = optax.chain(head, optax.adam(schedule))
    rows = jnp.asarray(
        batch_indices(seed, len(dataset.train_labels), updates, config.batch_size)
    )
    block = max(1, updates // config.evaluations)
    run = jax.jit(
        lambda carry, rows, images, labels: descend(
            tx, network.loss, carry, rows, images, labels
        )
    )
    accuracy = jax.jit(network.accuracy)
    train = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    test = jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)
    carry = network.params, tx.init(network.params)
    compiled = run.lower(carry, rows[:block], *train).compile()
    curve = Curve([0], [0.0], [float(accuracy(carry[0], test))])
    for first in range(0, block * config.evaluations, block):
        began = time.perf_counter()
        carry = jax.block_until_ready(
            compiled(carry, rows[first : first + block], *train)
        )
        curve.updates.append(first + block)
        curve.seconds.append(curve.seconds[-1] + time.perf_counter() - began)
        curve.accuracy.append(float(accuracy(carry[0], test)))
    return curve


def main(config: Config) -> None:
    """Train all; print, plot and keep."""
    dataset = data.load(config.data, config.data_dir)
    short, long, deep = config.updates
    runs = {
        f"one hidden layer, {short} updates": (1, short),
        f"one hidden layer, {long} updates": (1, long),
        f"four hidden layers, {deep} updates": (4, deep),
    }
    print(f"{results.device_name()}; J = {config.samples}, batch {config.batch_size}")
    print("| network | forward only | seconds | back-propagation | seconds |")
    print("| --- | --- | --- | --- | --- |")
    curves: dict[str, dict[str, list[Curve]]] = {}
    for label, (hidden, updates) in runs.items():
        curves[label] = {
            name: [
                trained(config, dataset, hidden, updates, seed, heat)
                for seed in config.seeds
            ]
            for name, heat in (("forward only", True), ("back-propagation", False))
        }
        cells = []
        for found in curves[label].values():
            ends = jnp.array([curve.accuracy[-1] for curve in found])
            seconds = max(curve.seconds[-1] for curve in found)
            cells += [f"{ends.mean():.4f} (least {ends.min():.4f})", f"{seconds:.0f}"]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)
    kept = {
        label: {name: [c._asdict() for c in found] for name, found in both.items()}
        for label, both in curves.items()
    }
    results.write_json(config.output / "forward_only.json", config, curves=kept)
    path = config.output / "forward_only.png"
    with plotting.figure(path, 1, len(curves)) as (_, axes):
        for panel, (label, both) in zip(axes[0], curves.items(), strict=True):
            draw(panel, label, both)


def draw(panel: Any, label: str, both: dict[str, list[Curve]]) -> None:
    """Test accuracy against updates, every seed a line."""
    colours = {"forward only": "#2a78d6", "back-propagation": "#888888"}
    for name, found in both.items():
        for curve in found:
            panel.plot(curve.updates, curve.accuracy, color=colours[name], linewidth=1)
        best = max(curve.accuracy[-1] for curve in found)
        panel.plot([], [], color=colours[name], label=f"{name}: {best:.4f}")
    panel.set_ylim(0.9, 1)
    panel.set_xlabel("updates")
    panel.set_ylabel("test accuracy")
    panel.set_title(label)
    panel.legend(loc="lower right", title="best end")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
