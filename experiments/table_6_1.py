"""Tables 6.1 and 6.2 and Figure 6.1: SGD, IS, SGLD and HR from the same weights."""

from __future__ import annotations

import dataclasses
import statistics
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

import lejax
from experiments import data, models, plotting, results, training

Method = Literal[
    "SGD", "IS", "SGLD", "SGLD, published", "HR", "IS, reduced", "SGLD, reduced"
]

# Test accuracy after a fifth, …, all of the updates, and seconds per update.
PAPER = {
    "SGD": ([0.75, 0.80, 0.85, 0.87, 0.87], 0.0032),
    "IS": ([0.27, 0.45, 0.54, 0.57, 0.65], 6.2504),
    "SGLD": ([0.72, 0.81, 0.84, 0.86, 0.88], 7.0599),
    "HR": ([0.52, 0.64, 0.70, 0.73, 0.76], 3.3053),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Tables 6.1 and 6.2 and Figure 6.1 of the paper."""

    data: data.Name = "auto"
    """Data set; auto is MNIST where it is prepared already, else digits."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps its data; its own default where not given."""
    methods: tuple[Method, ...] = typing.get_args(Method)[:-1]
    """IS, SGLD and HR are the paper's processes, in law, and follow its formulas;
    'SGLD, published' has noise of standard deviation ε_j instead of variance ε_j, which
    agrees with the published row. The reduced ones are the library's defaults: what the
    loss cannot see of the noise is left out."""
    seeds: tuple[int, ...] = (0,)
    """One run of every method for each: its weights, batches, test images and draws."""
    updates: int = 500
    """Parameter updates, a multiple of 5."""
    samples: int = 1000
    """J of importance sampling and of the Langevin chain."""
    robbins_monro: int = 30
    """J and M of Robbins-Monro."""
    tau: float = 0.01
    """Variance of the smoothing, and learning rate of all methods."""
    batch_size: int = 20
    """Training images in an update."""
    test_images: int = 1000
    """Random test images for the accuracy, at most all."""
    hidden: int = 200
    """Units of the hidden layer."""
    activation: models.Activation = "tanh"
    """Activation of the hidden layer."""
    initialization: models.Initialization = "glorot"
    """Initialisation of the weights."""
    output: Path = Path("results")
    """Folder for table_6_1.json, table_6_2.json and figure_6_1.png."""

    def __post_init__(self) -> None:
        """Refuse what cannot be tabulated."""
        if len(set(self.methods)) < len(self.methods):
            raise SystemExit(f"--methods must differ, got {' '.join(self.methods)}.")
        if self.updates < 5 or self.updates % 5:
            raise SystemExit(
                f"--updates must be a multiple of 5, got {self.updates}: the table has "
                "a column for each fifth of them."
            )


def langevin_step_size(j: Any) -> Any:
    """ε_j = 1/(1000 + j), where the first step, j = 0 here, is the paper's j = 1."""
    return 1.0 / (1001 + j)


def robbins_monro_step_size(j: Any) -> Any:
    """a_j = 0.1 j^-0.7, likewise."""
    return 0.1 * jnp.asarray(j + 1, jnp.float32) ** -0.7


def optimizer(
    method: Method, config: Config, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """The method with the paper's settings: learning rate τ, and plain draws."""

    def chain(temperature: Any, **options: Any) -> lejax.Sampler:
        return lejax.sgld(
            config.samples, langevin_step_size, temperature=temperature, **options
        )

    moves = config.robbins_monro
    samplers: dict[Method, Callable[[], lejax.Sampler]] = {
        "IS": lambda: lejax.importance(
            config.samples, antithetic=False, sample_complement=True
        ),
        "SGLD": lambda: chain(1.0, sample_complement=True),
        "SGLD, published": lambda: chain(langevin_step_size, sample_complement=True),
        "HR": lambda: lejax.robbins_monro(
            moves, moves, robbins_monro_step_size, antithetic=False
        ),
        "IS, reduced": lambda: lejax.importance(config.samples),
        "SGLD, reduced": lambda: chain(1.0),
    }
    if method == "SGD":
        head = training.backpropagation()
    else:
        smooth = lejax.heat if method == "HR" else lejax.local_entropy
        head = smooth(samplers[method](), config.tau, key=key)
    return optax.chain(head, optax.sgd(config.tau))


Runs = dict[str, list[list[training.Evaluation]]]  # method -> seed -> evaluations


def run(config: Config) -> tuple[str, Runs]:
    """Train with every method and seed; the seed fixes all but the method.

    Returns:
        The name of the data set, and the runs.
    """
    dataset = data.load(config.data, config.data_dir)
    print(f"Device: {results.device_name()}")
    widths = (
        dataset.train_images.shape[1],
        config.hidden,
        int(dataset.train_labels.max()) + 1,
    )
    per_block = config.updates // (25 if config.updates % 25 == 0 else 5)
    total = config.updates * len(config.methods) * len(config.seeds)
    runs: Runs = {method: [] for method in config.methods}
    with tqdm(total=total, unit="update", smoothing=0.02) as bar:
        for seed in config.seeds:
            classifier = models.dense_classifier(
                widths, seed, config.activation, config.initialization
            )
            indices = training.batch_indices(
                seed, len(dataset.train_labels), config.updates, config.batch_size
            )
            test = np.random.default_rng(seed).permutation(len(dataset.test_labels))
            started = {
                method: training.train(
                    classifier,
                    optimizer(method, config, jax.random.key(seed)),
                    dataset,
                    indices,
                    test[: config.test_images],
                    per_block,
                )
                for method in config.methods
            }
            for method in config.methods:
                runs[method].append([])
            for evaluations in zip(*started.values(), strict=True):
                for method, evaluation in zip(started, evaluations, strict=True):
                    runs[method][-1].append(evaluation)
                bar.set_description(
                    f"seed {seed}, accuracy "
                    + ", ".join(
                        f"{m} {e.accuracy:.2f}"
                        for m, e in zip(started, evaluations, strict=True)
                    )
                )
                bar.update(
                    per_block * len(evaluations) if evaluations[0].updates else 0
                )
    return dataset.name, runs


def columns(evaluations: list[training.Evaluation]) -> list[float]:
    """The accuracy after each fifth of the updates."""
    fifth = (len(evaluations) - 1) // 5
    return accuracies(evaluations)[fifth::fifth]


def accuracies(evaluations: list[training.Evaluation]) -> list[float]:
    """The accuracies of one run; of at most 10,000 images they have four digits."""
    return [round(evaluation.accuracy, 4) for evaluation in evaluations]


def print_tables(config: Config, runs: Runs) -> dict[str, float]:
    """Print both tables with the paper's rows; return the seconds per update."""
    row = "{:<18}" + "{:>8}" * 5
    print(f"\nTable 6.1: test accuracy, mean of {len(config.seeds)} run(s)")
    print(row.format("updates", *(config.updates * i // 5 for i in range(1, 6))))
    for method, of_seeds in runs.items():
        mean = np.mean([columns(evaluations) for evaluations in of_seeds], axis=0)
        print(row.format(method, *(f"{a:.3f}" for a in mean)))
        if method in PAPER and config.updates == 500:
            print(row.format("  paper, MNIST", *(f"{a:.2f}" for a in PAPER[method][0])))
    seconds = {
        method: statistics.median(
            e.seconds_per_update for evaluations in of_seeds for e in evaluations[1:]
        )
        for method, of_seeds in runs.items()
    }
    print(f"\nTable 6.2: median seconds per update on {results.device_name()}")
    row = "{:<18}{:>12}{:>16}{:>16}"
    print(row.format("", "seconds", "ratio to SGD", "in the paper"))
    for method, median in seconds.items():
        ratio = f"{median / seconds['SGD']:.0f}" if "SGD" in seconds else "-"
        paper = PAPER.get(method)
        published = f"{paper[1] / PAPER['SGD'][1]:.0f}" if paper else "-"
        print(row.format(method, f"{median:.5f}", ratio, published))
    print()
    return seconds


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    config = tyro.cli(Config, args=args)
    name, runs = run(config)
    seconds = print_tables(config, runs)
    results.write_json(
        config.output / "table_6_1.json",
        config,
        data=name,
        paper={method: row for method, (row, _) in PAPER.items()},
        table={m: [columns(e) for e in of_seeds] for m, of_seeds in runs.items()},
        updates=[evaluation.updates for evaluation in next(iter(runs.values()))[0]],
        accuracy={
            method: [accuracies(evaluations) for evaluations in of_seeds]
            for method, of_seeds in runs.items()
        },
    )
    results.write_json(
        config.output / "table_6_2.json",
        config,
        data=name,
        paper={method: second for method, (_, second) in PAPER.items()},
        seconds_per_update=seconds,
    )
    plotting.accuracy_curves(
        config.output / "figure_6_1.png",
        {
            method: (
                np.asarray([e.updates for e in of_seeds[0]]),
                np.asarray([accuracies(evaluations) for evaluations in of_seeds]),
            )
            for method, of_seeds in runs.items()
        },
        "Test accuracy from random weights",
    )


if __name__ == "__main__":
    main()
