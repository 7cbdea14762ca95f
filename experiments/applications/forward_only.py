"""Training without back-propagation: forward passes, with draws for every example.

`score_function` and `importance_by_example` at the head of Adam with a cosine rate,
compared with back-propagation in their place.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
import tyro

import lejax
from experiments.common import data, models, plotting, results
from experiments.common.methods import backpropagation
from experiments.common.training import batch_indices, descend, held_out


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    data: data.Name = "auto"
    """Data set."""
    data_dir: str | None = None
    """Folder of tensorflow-datasets; by default its own."""
    validation: bool = False
    """Hold out a sixth of the training images and test on them, to choose settings."""
    batch_size: int = 100
    """Examples of an update."""
    signs_per_draw: int = 16
    """Number of samples that share a draw under random signs."""
    rate: float | None = None
    """Adam's rate at the start of the cosine; by default each run has its own."""
    tau: float | None = None
    """Variance of the draws; by default each run has its own."""
    decay: float | None = None
    """Decoupled weight decay; by default each run has its own."""
    only: tuple[str, ...] = ()
    """Names of the runs to add to existing results, such as short or long; else all."""
    shorten: int = 1
    """Divisor of the updates of all runs."""
    evaluations: int = 10
    """Number of test accuracies along each run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, batches and draws."""
    output: Path = Path("results")
    """Folder of the results."""


class Run(NamedTuple):
    """A network and its training.

    The rates, τ and J are from a search on the validation split, with one seed: rates
    of .001, .002, .003 and .01, τ of .0001, .001, .003 and .01, J of 64 and 128. For
    `long`, which without decay fits 99.8 % of its training images, the search had a
    third of the updates: decays of 0, .02, .03, .05 and .1 at τ = .01, then τ of .0025,
    .005 and .02; close results were repeated with two seeds.
    """

    hidden: int
    updates: int
    activation: models.Activation = "relu"
    initialization: models.Initialization = "he"
    samples: int = 64
    tau: float = 0.01
    rate: float = 0.003
    decay: float = 0.0


RUNS = {
    "short": Run(1, 8000),
    "tanh": Run(1, 8000, "tanh", "glorot"),
    "long": Run(1, 60_000, tau=0.005, decay=0.03),
    "four layers": Run(4, 6000, samples=128, tau=0.001, rate=0.002),
}
Head = Literal["forward only", "local entropy by example", "back-propagation"]
HEADS: tuple[Head, ...] = get_args(Head)
BY_EXAMPLE = ("short",)


class Curve(NamedTuple):
    """One run: updates so far, seconds of training so far, test accuracy."""

    updates: list[int]
    seconds: list[float]
    accuracy: list[float]


def smoothed_gradient(config: Config, run: Run, head: Head, seed: int) -> Any:
    """The head of the chain."""
    if head == "back-propagation":
        return backpropagation()
    # Single draws: for nearly linear losses, pairs have twice the noise.
    options = {"antithetic": False, "signs_per_draw": config.signs_per_draw}
    key = jax.random.key(seed)
    if head == "forward only":
        sampler = lejax.score_function(run.samples, **options)
        return lejax.heat(sampler, run.tau, key=key)
    sampler = lejax.importance_by_example(run.samples, **options)
    return lejax.local_entropy(sampler, run.tau, key=key)


def trained(
    config: Config, dataset: data.Dataset, run: Run, head: Head, seed: int
) -> Curve:
    """Train a network of hidden layers of 200 units."""
    widths = dataset.widths(*(200,) * run.hidden)
    network = models.dense_classifier(widths, seed, run.activation, run.initialization)
    schedule = optax.cosine_decay_schedule(run.rate, run.updates)
    rule = optax.adamw(schedule, weight_decay=run.decay)
    tx = optax.chain(smoothed_gradient(config, run, head, seed), rule)
    rows = jnp.asarray(
        batch_indices(seed, len(dataset.train_labels), run.updates, config.batch_size)
    )
    block = max(1, run.updates // config.evaluations)
    advance = jax.jit(
        lambda carry, rows, images, labels: descend(
            tx, network.loss, carry, rows, images, labels
        )
    )
    accuracy = jax.jit(network.accuracy)
    train = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    test = jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)
    carry = network.params, tx.init(network.params)
    compiled = advance.lower(carry, rows[:block], *train).compile()
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


def described(label: str, run: Run) -> str:
    """A run in words."""
    layers = {1: "one hidden layer", 4: "four hidden layers"}[run.hidden]
    return (
        f"{label}: {layers}, {run.activation}, {run.updates} updates, "
        f"J = {run.samples}, τ = {run.tau:g}, rate {run.rate:g}"
        + (f", decay {run.decay:g}" if run.decay else "")
    )


def named(label: str) -> str:
    """The name in `RUNS` of a description."""
    return label.partition(":")[0]


def put(curves: dict[str, Any], label: str, both: dict[str, Any]) -> dict[str, Any]:
    """The curves with a run added, in order; it replaces one of the same name."""
    by_name = {named(other): (other, found) for other, found in curves.items()}
    by_name[named(label)] = label, both
    return dict(by_name[name] for name in RUNS if name in by_name)


def main(config: Config) -> None:
    """Train all networks; print, plot and save."""
    dataset = data.load(config.data, config.data_dir)
    if config.validation:
        dataset = held_out(dataset)
    print(f"{results.device_name()}; batch {config.batch_size}")
    print("| network | head | test accuracy (least of the seeds) | seconds |")
    print("| --- | --- | --- | --- |")
    # Runs on the validation split must not replace the results.
    stem = "forward_only_validation" if config.validation else "forward_only"
    path = config.output / f"{stem}.json"
    given = {name: getattr(config, name) for name in ("rate", "tau", "decay")}
    given = {name: value for name, value in given.items() if value is not None}
    # The runs of an earlier call are kept.
    curves = results.read(path)["curves"] if path.exists() and config.only else {}
    for name, of_name in RUNS.items():
        if config.only and name not in config.only:
            continue
        run = of_name._replace(updates=of_name.updates // config.shorten, **given)
        label = described(name, run)
        both = {}
        for head in HEADS:
            if head == "local entropy by example" and name not in BY_EXAMPLE:
                continue
            found = [trained(config, dataset, run, head, seed) for seed in config.seeds]
            both[head] = [curve._asdict() for curve in found]
            ends = jnp.array([curve.accuracy[-1] for curve in found])
            seconds = max(curve.seconds[-1] for curve in found)
            accuracy = f"{ends.mean():.4f} ({ends.min():.4f})"
            print(f"| {label} | {head} | {accuracy} | {seconds:.0f} |", flush=True)
        curves = put(curves, label, both)
        results.write_json(path, config, curves=curves)
    with plotting.figure(path.with_suffix(".png"), 1, len(curves)) as (_, axes):
        for panel, (label, both) in zip(axes[0], curves.items(), strict=True):
            draw(panel, label, both)


def draw(panel: Any, label: str, both: dict[str, list[dict[str, Any]]]) -> None:
    """Test accuracy against updates, with a line for every seed."""
    colours: dict[str, str] = dict(
        zip(HEADS, ("#2a78d6", "#d6722a", "#888888"), strict=True)
    )
    for head in (head for head in HEADS if head in both):
        found = both[head]
        for curve in found:
            panel.plot(
                curve["updates"], curve["accuracy"], color=colours[head], linewidth=1
            )
        mean = sum(curve["accuracy"][-1] for curve in found) / len(found)
        panel.plot([], [], color=colours[head], label=f"{head}: {mean:.4f}")
    panel.set_ylim(0.9, 1)
    panel.set_xlabel("updates")
    panel.set_ylabel("test accuracy")
    _, _, rest = label.partition(": ")
    panel.set_title(f"{named(label)}\n{rest.partition(', J')[0]}", fontsize=9)
    panel.legend(loc="lower right", title="mean of the ends", fontsize=7)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
