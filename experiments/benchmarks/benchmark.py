"""Time, error and peak memory of an update, reduced and direct, and of a plain step."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import lejax
from experiments.common import data, methods, models, results, training


@dataclasses.dataclass(frozen=True)
class Config:
    """Updates at the paper's settings, in one interleaved run."""

    data: Literal["mnist", "random"] = "random"
    """Images of the batch: those of the first update of Table 6.1, or uniform noise.
    Errors depend on them; times do not."""
    data_dir: str | None = None
    """Folder of tensorflow-datasets; by default its own."""
    samples: int = 1000
    """J of importance sampling, of the chain, and the population of OpenES."""
    hidden: int = 200
    """Units of a hidden layer."""
    moves: int = 30
    """J and M of Robbins-Monro."""
    many_samples: int = 100_000
    """J of the update whose memory is compared with that of `samples`."""
    reference_samples: int = 1_000_000
    """Samples of the reference for the errors."""
    rounds: int = 9
    """Timed rounds; each has one turn of every method."""
    repeats: int = 16
    """Number of updates over which the error is averaged."""
    tau: float = 0.01
    """Variance of the smoothing."""
    output: Path = Path("results")
    """Folder for benchmark.json."""


class Case(NamedTuple):
    """A network and a batch size."""

    widths: tuple[int, ...]
    batch_size: int

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.widths))}, batch {self.batch_size}"


def cases(config: Config) -> tuple[Case, ...]:
    """The paper's network, and cases in which the reduction gains less or nothing."""
    paper = (784, config.hidden, 10)
    return (
        Case(paper, 20),
        Case(paper, 200),
        Case(paper, 1000),
        Case((784, *(config.hidden,) * 3, 10), 20),
        Case((784, *(config.hidden,) * 7, 10), 20),
    )


LIMITED = ("importance", "importance, no credit", "importance, direct")

Update = Callable[[Any, jax.Array, Any], Any]  # (params, key, batch) -> params


@functools.cache
def mnist(data_dir: str | None) -> data.Dataset:
    """The data set, which is read once."""
    return data.load("mnist", data_dir)


def problem(case: Case, config: Config) -> tuple[models.Classifier, tuple[Any, Any]]:
    """The network and its batch."""
    if config.data == "mnist":
        dataset = mnist(config.data_dir)
        size = len(dataset.train_labels)
        first = training.batch_indices(0, size, 1, case.batch_size)[0]
        images, labels = dataset.train_images[first], dataset.train_labels[first]
    else:
        rng = np.random.default_rng(0)
        images = rng.random((case.batch_size, case.widths[0]), np.float32)
        labels = rng.integers(0, case.widths[-1], case.batch_size)
    batch = jnp.asarray(images), jnp.asarray(labels)
    return models.dense_classifier(case.widths, seed=0), batch


def sgd(loss: Callable[..., jax.Array], config: Config) -> Update:
    """A plain step: one call of `jax.value_and_grad` and `optax.sgd`."""
    tx = optax.sgd(config.tau)

    def update(params: Any, key: jax.Array, batch: Any) -> Any:
        del key
        _, grads = jax.value_and_grad(loss)(params, batch)
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)

    return update


def open_es(loss: Callable[..., jax.Array], config: Config) -> Update | None:
    """A generation of evosax's OpenES as a step of the same size: pairs, no shaping."""
    try:
        from evosax.algorithms import Open_ES
        from evosax.core.fitness_shaping import identity_fitness_shaping_fn
    except ImportError:
        return None

    def update(params: Any, key: jax.Array, batch: Any) -> Any:
        es = Open_ES(
            config.samples,
            params,
            optimizer=optax.sgd(config.tau),
            std_schedule=optax.constant_schedule(config.tau**0.5),
            fitness_shaping_fn=identity_fitness_shaping_fn,
        )
        state = es.init(key, params, es.default_params)
        population, state = es.ask(key, state, es.default_params)
        fitness = jax.vmap(lambda member: loss(member, batch))(population)
        state, _ = es.tell(key, population, fitness, state, es.default_params)
        return es.get_mean(state)

    return update


def updates(loss: Callable[..., jax.Array], config: Config) -> dict[str, Update]:
    """All methods; "direct" is without credit and without the reduction."""
    n, m = config.samples, config.moves

    def step(sampler: lejax.Sampler) -> Update:
        return lejax.step_fn(loss, sampler, config.tau)

    plain = functools.partial(lejax.importance, credit=False)
    chain, decay = methods.langevin_step_size, methods.robbins_monro_step_size
    found: dict[str, Update | None] = {
        "SGD step": sgd(loss, config),
        "importance": step(lejax.importance(n)),
        "importance, no credit": step(plain(n)),
        "importance, independent draws": step(plain(n, signs_per_draw=1)),
        "importance, direct": step(plain(n, signs_per_draw=1, reduction=False)),
        "sgld": step(lejax.sgld(n, chain)),
        "sgld, direct": step(lejax.sgld(n, chain, reduction=False)),
        "robbins_monro": step(lejax.robbins_monro(m, m, decay)),
        "robbins_monro, direct": step(
            lejax.robbins_monro(m, m, decay, reduction=False)
        ),
        "OpenES of evosax": open_es(loss, config),
    }
    return {name: update for name, update in found.items() if update is not None}


def seconds(
    case: Case, config: Config, names: Sequence[str] | None = None
) -> dict[str, list[float]]:
    """Seconds of each method in each round, after a round that compiles."""
    classifier, batch = problem(case, config)
    key = jax.random.key(0)
    chosen = updates(classifier.loss, config)
    jitted = {
        name: jax.jit(update)
        for name, update in chosen.items()
        if names is None or name in ("SGD step", *names)
    }
    times: dict[str, list[float]] = {name: [] for name in jitted}
    for turn in range(config.rounds + 1):
        for name, update in jitted.items():
            # A plain step is much shorter: a round takes the median of many.
            spans = []
            for _ in range(50 if name == "SGD step" else 1):
                start = time.perf_counter()
                jax.block_until_ready(update(classifier.params, key, batch))
                spans.append(time.perf_counter() - start)
            if turn:
                times[name].append(statistics.median(spans))
    return times


def errors(config: Config) -> dict[str, float]:
    """Root-mean-square errors of displacements, and the norm of E_q[X] - x.

    OpenES estimates -τ∇F^H. It differs from E_q[X] - x by far less than the errors.
    """
    classifier, batch = problem(cases(config)[0], config)

    def displacement(update: Update) -> Callable[[jax.Array], jax.Array]:
        def run(key: jax.Array) -> jax.Array:
            moved = update(classifier.params, key, batch)
            change = jax.tree.map(jnp.subtract, moved, classifier.params)
            return jax.flatten_util.ravel_pytree(change)[0]

        return jax.jit(run)

    reference = lejax.importance(config.reference_samples)
    truth = displacement(lejax.step_fn(classifier.loss, reference, config.tau))(
        jax.random.key(1)
    )
    found = {"the displacement itself": float(jnp.linalg.norm(truth))}
    for name, update in updates(classifier.loss, config).items():
        if "importance" in name or "OpenES" in name:
            run = displacement(update)
            keys = jax.random.split(jax.random.key(2), config.repeats)
            squares = [float(jnp.sum((run(key) - truth) ** 2)) for key in keys]
            found[name] = float(np.sqrt(np.mean(squares)))
    return found


def peak_memory(config: Config, name: str, samples: int) -> float:
    """Peak resident MB of this process, which must run one update only."""
    config = dataclasses.replace(config, samples=samples, data="random")
    classifier, batch = problem(cases(config)[0], config)
    update = jax.jit(updates(classifier.loss, config)[name])
    jax.block_until_ready(update(classifier.params, jax.random.key(0), batch))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(config: Config, names: Sequence[str] | None = None) -> dict[str, float]:
    """Peak memory by method and J, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    loss = models.dense_classifier(cases(config)[0].widths, seed=0).loss
    runs = {name: (name, config.samples) for name in updates(loss, config)}
    many = config.many_samples
    runs[f"importance, J = {many}"] = ("importance", many)
    found = {}
    for label, run in runs.items():
        if names is not None and label not in names:
            continue
        with context.Pool(1) as pool:
            found[label] = pool.apply(peak_memory, (config, *run))
    return found


def ratios(
    times: dict[str, list[float]], to: str = "SGD step"
) -> dict[str, tuple[float, float, float]]:
    """Median, smallest and largest ratio to the plain step, or another, by round."""
    found = {}
    for name, spans in times.items():
        of_rounds = [a / b for a, b in zip(spans, times[to], strict=True)]
        found[name] = (statistics.median(of_rounds), min(of_rounds), max(of_rounds))
    return found


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    config = tyro.cli(Config, args=args)
    # First, as the peak of a process includes the size of its parent at the start.
    megabytes = memory(config)
    paper = cases(config)[0]
    of_all = seconds(paper, config)
    # Without slow methods, which would change the contents of the cache.
    times = {str(case): seconds(case, config, LIMITED) for case in cases(config)}
    error = errors(config)

    print(f"Device: {results.device_name()}")
    step = statistics.median(of_all["SGD step"])
    print(f"\nUpdates, {paper}: ratio to an SGD step of {1e3 * step:.2f} ms")
    row = "| {:<30} | {:>20} | {:>8} | {:>8} |"
    print(row.format("update", "ratio (least-largest)", "error", "MB"))
    print(row.format("---", "---", "---", "---"))
    for name, (median, least, largest) in ratios(of_all).items():
        shown = f"{error[name]:.3f}" if name in error else ""
        spread = f"{median:.0f} ({least:.0f}-{largest:.0f})"
        print(row.format(name, spread, shown, f"{megabytes[name]:.0f}"))
    print(f"Norm of the displacement: {error['the displacement itself']:.4f}")
    if "OpenES of evosax" in error:
        spans = ratios(of_all)
        cost = {
            name: spans[name][0] * error[name] ** 2 for name in error if name in spans
        }
        for name in ("importance", "importance, no credit"):
            more = cost["OpenES of evosax"] / cost[name]
            print(f"To an equal error OpenES takes {more:.0f} times the time of {name}")
    many = f"importance, J = {config.many_samples}"
    print(f"{many}: {megabytes[many]:.0f} MB")
    print("\nWhere the reduction helps, and what credit costs: importance")
    row = "| {:<32} | {:>10} | {:>10} | {:>8} | {:>12} |"
    print(row.format("network", "reduced", "direct", "gain", "with credit"))
    print(row.format("---", "---", "---", "---", "---"))
    for case, spans in times.items():
        found = ratios(spans)
        _, reduced, direct = (found[name][0] for name in LIMITED)
        plain = ratios(spans, "importance, no credit")
        gain = f"{plain['importance, direct'][0]:.1f}"
        more = f"{plain['importance'][0]:.2f} times"
        print(row.format(case, f"{reduced:.0f}", f"{direct:.0f}", gain, more))
    print()
    results.write_json(
        config.output / "benchmark.json",
        config,
        seconds=of_all,
        seconds_by_case=times,
        errors=error,
        peak_resident_megabytes=megabytes,
    )


if __name__ == "__main__":
    main()
