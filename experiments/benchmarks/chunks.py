"""The best number of samples to evaluate at once, on the present device.

Updates with several chunk sizes and with the default, in turn: seconds, in units of the
default's, and the memory that XLA plans.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

import lejax
from experiments.benchmarks import benchmark
from experiments.benchmarks.memory import MEGABYTE
from experiments.common import models, results


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    chunk_sizes: tuple[int, ...] = (16, 64, 256, 1024, 4096, 16384)
    """Samples evaluated at once, besides the default; sizes above J are left out."""
    samples: int = 1000
    """J of the paper's network."""
    batch_size: int = 20
    """Examples of the network's batch."""
    large: int = 1_000_000
    """Entries of the large vector, which the reduction does not reduce."""
    large_samples: int = 256
    """J of the large vector."""
    small: int = 10
    """Entries of the small vector."""
    small_samples: int = 100_000
    """J of the small vector."""
    tau: float = 0.01
    """Variance of the smoothing."""
    rounds: int = 9
    """Timed rounds; each has one turn of every chunk size."""
    output: Path = Path("results")
    """Folder of the results."""


class Problem(NamedTuple):
    """A loss, its parameters and batch, J, and the sampler for a chunk size."""

    loss: Callable[..., jax.Array]
    params: Any
    batch: Any
    num_samples: int
    sampler: Callable[[int | None], lejax.Sampler]


def problems(config: Config) -> dict[str, Problem]:
    """A network with and without credit, forward passes only, vectors of two sizes."""
    network = models.dense_classifier((784, 200, 10), seed=0)
    images, labels = jax.random.split(jax.random.key(0))
    batch = (
        jax.random.uniform(images, (config.batch_size, 784)),
        jax.random.randint(labels, (config.batch_size,), 0, 10),
    )

    def square(x: jax.Array, center: jax.Array) -> jax.Array:
        return jnp.mean((x - center) ** 2)

    def importance(num_samples: int, **options: Any) -> Callable[..., lejax.Sampler]:
        return lambda size: lejax.importance(num_samples, chunk_size=size, **options)

    j = config.samples
    found = {
        "importance": importance(j),
        "importance, no credit": importance(j, credit=False),
        "score_function": lambda size: lejax.score_function(j, chunk_size=size),
    }
    named = {
        f"784-200-10, {name}": Problem(network.loss, network.params, batch, j, sampler)
        for name, sampler in found.items()
    }
    for size, j in (
        (config.large, config.large_samples),
        (config.small, config.small_samples),
    ):
        named[f"{size} numbers, importance"] = Problem(
            square, jnp.zeros(size), jnp.ones(size), j, importance(j)
        )
    return named


def measure(problem: Problem, config: Config) -> dict[str, dict[str, float]]:
    """By chunk size: seconds of a round, and megabytes of memory that XLA plans."""
    sizes = {"default": None} | {
        str(size): size for size in config.chunk_sizes if size <= problem.num_samples
    }
    args = problem.params, jax.random.key(1), problem.batch

    def compiled(size: int | None) -> Any:
        step = lejax.step_fn(problem.loss, problem.sampler(size), config.tau)
        return jax.jit(step).lower(*args).compile()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        steps = dict(zip(sizes, pool.map(compiled, sizes.values()), strict=True))
    spans: dict[str, list[float]] = {name: [] for name in sizes}
    for turn in range(config.rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            jax.block_until_ready(step(*args))
            if turn:
                spans[name].append(time.perf_counter() - began)
    ratios = benchmark.ratios(spans, "default")
    return {
        name: {
            "seconds": statistics.median(spans[name]),
            "ratio": ratios[name][0],
            "megabytes": steps[name].memory_analysis().temp_size_in_bytes / MEGABYTE,
        }
        for name in sizes
    }


def main(config: Config) -> None:
    """Measure, print and keep."""
    print(f"Device: {results.device_name()}")
    print("| update | chunk | time / default's | ms | MB |")
    print("| --- | --- | --- | --- | --- |")
    found = {}
    for name, problem in problems(config).items():
        found[name] = measure(problem, config)
        for chunk, of in found[name].items():
            cells = (name, chunk, f"{of['ratio']:.2f}", f"{1e3 * of['seconds']:.2f}")
            print(f"| {' | '.join(cells)} | {of['megabytes']:.1f} |", flush=True)
    results.write_json(config.output / "chunks.json", config, found=found)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
