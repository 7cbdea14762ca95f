"""Memory of an importance update of a large network, by peak resident size.

A dense network of equal layers, with every parameter drawn. The result is the memory of
an update besides the parameters and the batch, in units of the parameters' memory.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import lejax
from experiments.common import results

MEGABYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    parameters: int = 100_000_000
    """Approximate number of parameters of the network."""
    layers: int = 8
    """Number of equal layers."""
    samples: tuple[int, ...] = (4, 64)
    """J, on which the memory does not depend."""
    batch_size: int = 20
    """Examples of the batch."""
    output: Path = Path("results")
    """Folder of the results."""


def _resident(name: str) -> float:
    """VmRSS, the resident size, or VmHWM, its peak, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise LookupError(f"{name} is not in /proc/self/status")


def measure(config: Config, num_samples: int) -> dict[str, float]:
    """One update, compiled before, in a process of its own: sizes in MB."""
    width = round((config.parameters / config.layers) ** 0.5)
    rng = np.random.default_rng(0)
    params = [
        jnp.asarray(rng.standard_normal((width, width), np.float32) / width**0.5)
        for _ in range(config.layers)
    ]
    batch = jnp.asarray(rng.standard_normal((config.batch_size, width), np.float32))

    def loss(params: list[jax.Array], x: jax.Array) -> jax.Array:
        for kernel in params:
            x = jnp.tanh(x @ kernel)
        return jnp.mean(x**2)

    tx = optax.chain(
        lejax.local_entropy(
            lejax.importance(num_samples, chunk_size=1, reduction=False),
            1e-4,
            key=jax.random.key(0),
        ),
        optax.sgd(1.0),
    )

    def update(params: Any, state: Any, batch: jax.Array) -> tuple[Any, Any]:
        zeros = optax.tree.zeros_like(params)
        updates, state = tx.update(zeros, state, params, value_fn=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    compiled = jax.jit(update).lower(params, state, batch).compile()
    jax.block_until_ready((params, state, batch))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = _resident("VmRSS")
    moved, state = jax.block_until_ready(compiled(params, state, batch))
    peak = _resident("VmHWM") - before
    size = sum(leaf.nbytes for leaf in params) / MEGABYTE
    assert bool(jnp.isfinite(moved[0]).all())
    assert bool((moved[0] != params[0]).any())
    planned: Any = compiled.memory_analysis()
    return {
        "parameters_mb": size,
        "peak_mb": peak,
        "peak_in_parameters": peak / size,
        "planned_in_parameters": (
            planned.temp_size_in_bytes + planned.output_size_in_bytes
        )
        / MEGABYTE
        / size,
    }


def main(config: Config) -> None:
    """Measure every J in a process of its own, and print."""
    context = multiprocessing.get_context("spawn")
    found = {}
    print("| J | parameters, MB | update, MB | update / parameters | as XLA plans it |")
    print("| --- | --- | --- | --- | --- |")
    for num_samples in config.samples:
        with context.Pool(1) as pool:
            sizes = pool.apply(measure, (config, num_samples))
        found[f"J = {num_samples}"] = sizes
        print(
            f"| {num_samples} | {sizes['parameters_mb']:.0f} | {sizes['peak_mb']:.0f} |"
            f" {sizes['peak_in_parameters']:.2f} | {sizes['planned_in_parameters']:.2f}"
            " |"
        )
    results.write_json(config.output / "memory.json", config, sizes=found)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
