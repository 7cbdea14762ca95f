"""The start of a Langevin chain: at x, or at the end of the chain before.

Test accuracy of a network of rectifiers after 500 updates of 20 images, with momentum
.9 at rates far above τ. At these rates a chain that is kept need not be stable.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

import lejax
from experiments.common import data, models, results, training


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    data: Literal["auto", "mnist", "digits"] = "auto"
    """Data set."""
    data_dir: str | None = None
    """Folder of tensorflow-datasets; by default its own."""
    hidden: int = 200
    """Units of the hidden layer."""
    updates: int = 500
    """Updates of 20 images each."""
    seeds: int = 3
    """Number of seeds of the weights, batches and noise."""
    output: Path = Path("results")
    """Folder for starts.json."""


class Setting(NamedTuple):
    """J, ε, τ, T and the learning rate."""

    num_steps: int
    step_size: float
    tau: float
    temperature: float
    rate: float


SETTINGS = (
    Setting(20, 1e-3, 0.01, 1e-4, 0.1),
    Setting(20, 1e-3, 0.01, 1.0, 0.03),
    Setting(20, 1e-4, 0.01, 1e-4, 0.1),
    Setting(100, 1e-3, 0.01, 1.0, 0.03),
)


def accuracy(
    config: Config, dataset: data.Dataset, setting: Setting, seed: int, warm: bool
) -> float:
    """The accuracy on all test images; that of chance if parameters are not finite."""
    widths = dataset.widths(config.hidden)
    network = models.dense_classifier(widths, seed, "relu", "glorot")
    sampler = lejax.sgld(
        setting.num_steps,
        setting.step_size,
        temperature=setting.temperature,
        warm_start=warm,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "warm_start=True")
        head = lejax.local_entropy(sampler, setting.tau, key=jax.random.key(seed))
    tx: Any = optax.chain(head, optax.sgd(setting.rate, momentum=0.9))
    images, labels = map(jnp.asarray, (dataset.train_images, dataset.train_labels))
    rows = training.batch_indices(seed, len(labels), config.updates, 20)
    carry = network.params, tx.init(network.params)
    params, _ = jax.jit(
        lambda carry, rows: training.descend(
            tx, network.loss, carry, rows, images, labels
        )
    )(carry, jnp.asarray(rows))
    test = jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)
    return float(network.accuracy(params, test))


def main(config: Config) -> None:
    """Run all settings, print a table, and write it down."""
    dataset = data.load(config.data, config.data_dir)
    table = []
    print(f"{'J':>4} {'step':>6} {'tau':>5} {'T':>6} {'rate':>5}  at x  carried over")
    for setting in SETTINGS:
        found = {
            name: [
                round(accuracy(config, dataset, setting, seed, warm), 3)
                for seed in range(config.seeds)
            ]
            for name, warm in (("at x", False), ("carried over", True))
        }
        means = [sum(of_seeds) / len(of_seeds) for of_seeds in found.values()]
        print(
            "{:>4} {:>6} {:>5} {:>6} {:>5}".format(*setting),
            "  {:.3f}  {:.3f}".format(*means),
            flush=True,
        )
        table.append({**setting._asdict(), **found})
    results.write_json(config.output / "starts.json", config, table=table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
