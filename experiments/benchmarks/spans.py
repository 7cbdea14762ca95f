"""Gain and cost of credit by example if examples have several rows.

A network on sequences of T positions, which share its layers. Importance sampling with
credit, by the span of each example's rows, and without, in turn.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

import lejax
from experiments.common import results


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    positions: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """T; 1 needs no span, and above 4 the inner layers have no credit."""
    inputs: int = 256
    """Entries of a position."""
    hidden: int = 64
    """Units of a hidden layer."""
    batch_size: int = 20
    """Examples of the batch."""
    samples: int = 1000
    """J, the number of samples."""
    tau: float = 0.01
    """Variance of the smoothing."""
    repeats: int = 12
    """Number of updates from which the variance is computed."""
    rounds: int = 5
    """Timed rounds."""
    output: Path = Path("results")
    """Folder of the results."""


def compared(config: Config, positions: int, layers: int) -> dict[str, float]:
    """The factor by which credit lowers the variance, and the ratio of the times."""
    widths = (config.inputs, *(config.hidden,) * layers)
    *keys, of_rows, of_labels = jax.random.split(jax.random.key(0), layers + 3)
    shapes = [*itertools.pairwise(widths), (config.hidden, 10)]
    params = [
        jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, shape in zip(keys, shapes, strict=True)
    ]
    batch = (
        jax.random.normal(of_rows, (config.batch_size, positions, config.inputs)),
        jax.random.randint(of_labels, (config.batch_size,), 0, 10),
    )

    def loss(params: list[jax.Array], batch: Any) -> jax.Array:
        hidden, labels = batch
        for kernel in params[:-1]:
            hidden = jnp.tanh(hidden @ kernel)
        logits = hidden.mean(1) @ params[-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, variances = {}, {}
    for credit in (True, False):
        sampler = lejax.importance(config.samples, credit=credit)
        step = jax.jit(lejax.step_fn(loss, sampler, config.tau))
        ends = [step(params, key, batch) for key in some_keys(config.repeats)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves).var(0).sum(), *ends)
        updates[credit], variances[credit] = step, float(sum(stacked))
    ratios = []
    for key in some_keys(config.rounds):
        spans = {}
        for credit, step in updates.items():
            began = time.perf_counter()
            jax.block_until_ready(step(params, key, batch))
            spans[credit] = time.perf_counter() - began
        ratios.append(spans[True] / spans[False])
    return {
        "variance": variances[False] / variances[True],
        "time": statistics.median(ratios),
    }


def some_keys(count: int) -> list[jax.Array]:
    """`count` keys."""
    return list(jax.random.split(jax.random.key(1), count))


def main(config: Config) -> None:
    """Measure, print and keep."""
    print("| layers on positions | T | variance lower by | time | gain |")
    print("| --- | --- | --- | --- | --- |")
    found = []
    for layers in (1, 2):
        for positions in config.positions:
            of = compared(config, positions, layers)
            found.append({"layers": layers, "positions": positions, **of})
            numbers = (of["variance"], of["time"], of["variance"] / of["time"])
            cells = (str(layers), str(positions), *(f"{n:.2f}" for n in numbers))
            print(f"| {' | '.join(cells)} |", flush=True)
    results.write_json(config.output / "spans.json", config, found=found)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
