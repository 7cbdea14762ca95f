"""The training loop: all seeds of a run, in jitted blocks of updates."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import hosts, interruption, models
from experiments.common.checkpoints import Checkpoints
from experiments.common.data import Dataset
from experiments.common.methods import Run, backpropagation, optimizer


class Evaluation(NamedTuple):
    """The report of a run after each block of updates.

    Attributes:
        updates: the number of updates so far, without `sgd_updates`.
        accuracy: the test accuracy after them, (grid, seeds); the grid is over τ and
            the learning rate.
        seconds: the time of the block before, for the whole grid and all seeds, without
            compilation. NaN at the start.
        evaluations_per_update: evaluations of the loss or its gradient in each run.
        fingerprint: a hash of all parameters, equal if these are equal bit for bit.
        tau: τ of the last update, (grid, seeds); NaN before the first update.
    """

    updates: int
    accuracy: np.ndarray
    seconds: float
    evaluations_per_update: int
    fingerprint: str
    tau: np.ndarray


def batch_indices(seed: int, size: int, updates: int, batch_size: int) -> np.ndarray:
    """The examples of each update, (updates, batch_size): shuffled epochs."""
    rng = np.random.default_rng(seed)
    epochs = 1 + updates * batch_size // size
    order = np.concatenate([rng.permutation(size) for _ in range(epochs)])
    return order[: updates * batch_size].reshape(updates, batch_size)


def held_out(dataset: Dataset) -> Dataset:
    """Five sixths of the training images, with the others as test images."""
    cut = len(dataset.train_labels) * 5 // 6
    images, labels = dataset.train_images, dataset.train_labels
    return Dataset(dataset.name, images[:cut], labels[:cut], images[cut:], labels[cut:])


def split(run: Run, dataset: Dataset) -> Dataset:
    """The data of a run; with `validation`, no test image is used."""
    return held_out(dataset) if run.validation else dataset


def classifiers(
    run: Run, seeds: Sequence[int], dataset: Dataset
) -> tuple[Any, models.Classifier]:
    """The initial parameters of all seeds, stacked, and one of the networks."""
    widths = dataset.widths(*((run.hidden,) if run.hidden else ()))
    made = [
        models.dense_classifier(widths, seed, run.activation, run.initialization)
        for seed in seeds
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(c.params for c in made))
    return stacked, made[0]


def descend(
    tx: optax.GradientTransformationExtraArgs,
    loss: Callable[..., jax.Array],
    carry: tuple[Any, Any],
    rows: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[Any, Any]:
    """One update of (params, state) for each row of example numbers."""

    def update(carry: tuple[Any, Any], row: jax.Array) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(
            optax.tree.zeros_like(params),
            state,
            params,
            value_fn=loss,
            batch=(images[row], labels[row]),
        )
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(update, carry, rows)[0]


def everywhere() -> jax.sharding.Sharding:
    """A copy on every device, including those of other processes."""
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("samples",), axis_types=auto)
    return jax.NamedSharding(mesh, jax.P())


def train(
    run: Run,
    seeds: Sequence[int],
    dataset: Dataset,
    checkpoints: Checkpoints | None = None,
) -> Iterator[Evaluation]:
    """Trains from every seed at every τ and rate; evaluates after each block.

    The first evaluation is before the first block. A seed determines the weights, the
    batches, the test images and the draws, so these are the same for all methods. It is
    a generator, so that several runs can alternate.

    Args:
        run: the settings.
        seeds: the seeds, which are trained together.
        dataset: the data.
        checkpoints: the checkpoints of an unfinished run.

    Raises:
        InterruptedRunError: a signal requested it; the run so far is saved.
    """
    dataset = split(run, dataset)
    params, network = classifiers(run, seeds, dataset)
    params, *data = jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(everywhere(), array),
        (params, dataset.train_images, dataset.train_labels),
    )
    updates = run.sgd_updates + run.updates
    size = len(dataset.train_labels)
    batches = np.stack(
        [batch_indices(seed, size, updates, run.batch_size) for seed in seeds]
    )
    tests = np.stack(
        [
            np.random.default_rng(seed).permutation(len(dataset.test_labels))
            for seed in seeds
        ]
    )[:, : run.test_images]
    tested = dataset.test_images[tests], dataset.test_labels[tests]
    grid = list(itertools.product(run.tau, run.learning_rates or (None,)))
    taus = np.asarray([tau for tau, _ in grid], np.float32)
    rates = run.learning_rates and np.asarray([rate for _, rate in grid], np.float32)

    def mapped(function: Callable[..., Any], of_grid: Any, of_seeds: Any) -> Any:
        # On a CPU one run after the other, as the draws of all do not fit in its cache.
        # Moves on the small network are tiny, and cheaper for all runs at once.
        tiny = not run.hidden and run.method in ("SGLD", "HR")
        if jax.default_backend() == "cpu" and not tiny:
            function = jax.custom_batching.sequential_vmap(function)
        return jax.jit(jax.vmap(jax.vmap(function, of_seeds), of_grid))

    only = grid[0][0]

    def make(tau: Any, rate: Any, key: jax.Array) -> Any:
        # A single τ stays a number that the library can check.
        return optimizer(run, tau if len(run.tau) > 1 else only, rate, key)

    def begin(
        tau: Any, rate: Any, params: Any, rows: Any, seed: Any, *data: Any
    ) -> Any:
        if run.sgd_updates:
            tx = optax.chain(backpropagation(), optax.sgd(tau))
            params, _ = descend(
                tx, network.loss, (params, tx.init(params)), rows, *data
            )
        return params, make(tau, rate, jax.random.key(seed)).init(params)

    def block(tau: Any, rate: Any, carry: Any, rows: Any, *data: Any) -> Any:
        # The key of the draws is in the state: this one is not used.
        tx = make(tau, rate, jax.random.key(0))
        return descend(tx, network.loss, carry, rows, *data)

    rate_axis = None if rates is None else 0
    carry = mapped(
        begin,
        (0, rate_axis, None, None, None, None, None),
        (None, None, 0, 0, 0, None, None),
    )(taus, rates, params, batches[:, : run.sgd_updates], np.asarray(seeds), *data)
    blocks = np.split(batches[:, run.sgd_updates :], run.evaluations, axis=1)
    advance = mapped(
        block, (0, rate_axis, 0, None, None, None), (None, None, 0, 0, None, None)
    )
    advance = advance.lower(taus, rates, carry, blocks[0], *data).compile()
    accuracy = mapped(network.accuracy, (0, None), (0, 0))

    def evaluate(updates: int, seconds: float) -> Evaluation:
        spent = optax.tree.get(carry[1], "num_evaluations", jnp.ones(()))
        found = np.asarray(accuracy(carry[0], tested), float)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(carry[0]):
            digest.update(np.asarray(leaf).tobytes())
        info = optax.tree.get(carry[1], "info")
        tau = np.full(found.shape, np.nan) if info is None else info.tau_used
        return Evaluation(
            updates,
            found,
            seconds,
            int(spent.ravel()[0]),
            digest.hexdigest()[:16],
            np.asarray(tau, float),
        )

    found = None if checkpoints is None else checkpoints.load(carry)
    if found is None:
        evaluations = [evaluate(0, np.nan)]
    else:
        carry, record = found
        evaluations = [
            Evaluation(
                **e | {name: np.asarray(e[name]) for name in ("accuracy", "tau")}
            )
            for e in record
        ]
    yield from evaluations
    for done in range(len(evaluations), len(blocks) + 1):
        started = time.perf_counter()
        carry = jax.block_until_ready(
            advance(taus, rates, carry, blocks[done - 1], *data)
        )
        seconds = time.perf_counter() - started
        evaluations.append(evaluate(done * run.updates // run.evaluations, seconds))
        # All processes must save, and stop, after the same block.
        saved, due = False, checkpoints is not None and checkpoints.due()
        stop, due = hosts.any_of(interruption.requested(), due)
        if checkpoints is not None and (stop or due):
            record = [
                e._asdict() | {"accuracy": e.accuracy.tolist(), "tau": e.tau.tolist()}
                for e in evaluations
            ]
            saved = checkpoints.save(done, carry, record)
        yield evaluations[-1]
        if stop and done < len(blocks):
            raise interruption.InterruptedRunError(
                "Saved. The same command goes on from here."
                if saved
                else "Not saved: what was done of this run is lost."
            )
