"""What a direct importance update costs: time beside plain code, memory beside J."""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import lejax
from experiments import models, results


@dataclasses.dataclass(frozen=True)
class Config:
    """Time and memory of the direct importance update on the 784-200-10 network."""

    samples: int = 1000
    """J of the timed updates."""
    many_samples: int = 100_000
    """J of the update whose memory is compared with that of `samples`."""
    rounds: int = 7
    """Timed rounds; every method takes a turn in each."""
    batch_size: int = 20
    """Images in the batch: random ones, since time does not depend on them."""
    tau: float = 0.01
    """Variance of the smoothing."""
    output: Path = Path("results")
    """Folder for benchmark.json."""


Update = Callable[[Any, jax.Array, Any], Any]  # (params, key, batch) -> params


def problem(config: Config) -> tuple[models.Classifier, tuple[jax.Array, jax.Array]]:
    """The paper's larger network and a batch."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((config.batch_size, 784)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, config.batch_size))
    return models.dense_classifier((784, 200, 10), seed=0), (images, labels)


def sgd(loss: Callable[..., jax.Array], config: Config) -> Update:
    """A plain step."""

    def update(params: Any, key: jax.Array, batch: Any) -> Any:
        del key
        grads = jax.grad(loss)(params, batch)
        return optax.apply_updates(params, optax.tree.scale(-config.tau, grads))

    return update


def by_hand(loss: Callable[..., jax.Array], config: Config, *, pairs: bool) -> Update:
    """Algorithm 4 as one writes it down: all draws at once, one `vmap`."""
    units = config.samples // 2 if pairs else config.samples
    scale = config.tau**0.5

    def update(params: Any, key: jax.Array, batch: Any) -> Any:
        # The very draws of lejax, so that both give the same answer.
        noise = jax.vmap(
            lambda unit: optax.tree.random_like(jax.random.fold_in(key, unit), params)
        )(jnp.arange(units))

        def losses(sign: float) -> jax.Array:
            return jax.vmap(
                lambda e: loss(optax.tree.add_scale(params, sign * scale, e), batch)
            )(noise)

        signs = (1.0, -1.0) if pairs else (1.0,)
        weights = jax.nn.softmax(-jnp.stack([losses(s) for s in signs]), (0, 1))
        signed = jnp.asarray(signs) @ weights
        return jax.tree.map(
            lambda p, e: p + scale * jnp.tensordot(signed, e, 1), params, noise
        )

    return update


def methods(loss: Callable[..., jax.Array], config: Config) -> dict[str, Update]:
    """Everything that is timed."""

    def lejax_step(pairs: bool) -> Update:
        sampler = lejax.importance(config.samples, antithetic=pairs)
        return lejax.step_fn(loss, sampler, config.tau)

    return {
        "SGD step": sgd(loss, config),
        "by hand, plain": by_hand(loss, config, pairs=False),
        "lejax, plain": lejax_step(pairs=False),
        "by hand, pairs": by_hand(loss, config, pairs=True),
        "lejax, pairs": lejax_step(pairs=True),
    }


def seconds(config: Config) -> dict[str, list[float]]:
    """Seconds of each method in each round, after one that compiles."""
    classifier, batch = problem(config)
    key = jax.random.key(0)
    jitted = {
        name: jax.jit(update)
        for name, update in methods(classifier.loss, config).items()
    }
    times: dict[str, list[float]] = {name: [] for name in jitted}
    for turn in range(config.rounds + 1):
        for name, update in jitted.items():
            start = time.perf_counter()
            jax.block_until_ready(update(classifier.params, key, batch))
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def peak_memory(config: Config, name: str, samples: int) -> float:
    """Peak resident MB of a process that runs one update; run in one of its own."""
    config = dataclasses.replace(config, samples=samples)
    classifier, batch = problem(config)
    update = jax.jit(methods(classifier.loss, config)[name])
    jax.block_until_ready(update(classifier.params, jax.random.key(0), batch))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(config: Config) -> dict[str, float]:
    """Peak memory by method and J, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for name, samples in (
        ("SGD step", config.samples),
        ("by hand, pairs", config.samples),
        ("lejax, pairs", config.samples),
        ("lejax, pairs", config.many_samples),
    ):
        with context.Pool(1) as pool:
            megabytes = pool.apply(peak_memory, (config, name, samples))
        found[f"{name}, J = {samples}"] = megabytes
    return found


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    config = tyro.cli(Config, args=args)
    # First of all: the peak of a process counts that of its parent when it was started.
    megabytes = memory(config)
    times = seconds(config)
    print(f"Device: {results.device_name()}")
    print("\nPeak resident memory of a process with one update")
    for name, peak in megabytes.items():
        print(f"{name:<32}{peak:>8.0f} MB")
    base = statistics.median(times["SGD step"])
    row = "{:<18}{:>12}{:>14}{:>20}"
    print(f"\nUpdates at J = {config.samples}, ratio to the SGD step of the same run")
    print(row.format("", "seconds", "ratio", "min to max"))
    for name, of_rounds in times.items():
        low, high = min(of_rounds) / base, max(of_rounds) / base
        median = statistics.median(of_rounds)
        print(
            row.format(
                name,
                f"{median:.5f}",
                f"{median / base:.0f}",
                f"{low:.0f} to {high:.0f}",
            )
        )
    for kind in ("plain", "pairs"):
        share = [
            ours / by_hand
            for ours, by_hand in zip(
                times[f"lejax, {kind}"], times[f"by hand, {kind}"], strict=True
            )
        ]
        print(f"lejax / by hand, {kind}: {statistics.median(share):.2f}")
    print()
    results.write_json(
        config.output / "benchmark.json",
        config,
        seconds=times,
        peak_resident_megabytes=megabytes,
    )


if __name__ == "__main__":
    main()
