"""The one training loop: jitted blocks of updates between two evaluations."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import Dataset
from experiments.models import Classifier


class Evaluation(NamedTuple):
    """What a run reports after each block of updates.

    Attributes:
        updates: how many there have been.
        accuracy: the test accuracy after them.
        seconds_per_update: of the block before; NaN at the start. Compilation is not in
            it.
    """

    updates: int
    accuracy: float
    seconds_per_update: float


def backpropagation() -> optax.GradientTransformationExtraArgs:
    """The plain gradient at the head of a chain, where lejax puts a smoothed one."""

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value_fn: Any = None,
        batch: Any = None,
    ) -> tuple[Any, Any]:
        del updates
        return jax.grad(value_fn)(params, batch), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def batch_indices(seed: int, size: int, updates: int, batch_size: int) -> np.ndarray:
    """Which examples each update sees (updates, batch_size): shuffled epochs."""
    rng = np.random.default_rng(seed)
    epochs = -(-updates * batch_size // size)
    order = np.concatenate([rng.permutation(size) for _ in range(epochs)])
    return order[: updates * batch_size].reshape(updates, batch_size)


def train(
    classifier: Classifier,
    optimizer: optax.GradientTransformationExtraArgs,
    dataset: Dataset,
    indices: np.ndarray,
    test: np.ndarray,
    updates_per_block: int,
) -> Iterator[Evaluation]:
    """Run one update per row of `indices`; evaluate at the start and after each block.

    A generator, so that several methods can take turns, block by block: their times are
    then comparable on a machine whose speed drifts.
    """
    held_out = (dataset.test_images[test], dataset.test_labels[test])

    def block(carry: tuple[Any, Any], batches: tuple[jax.Array, jax.Array]):
        def update(carry: tuple[Any, Any], batch: tuple[jax.Array, jax.Array]):
            params, state = carry
            updates, state = optimizer.update(
                optax.tree.zeros_like(params),
                state,
                params,
                value_fn=classifier.loss,
                batch=batch,
            )
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(update, carry, batches)[0]

    def batches_of(rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return (
            jnp.asarray(dataset.train_images[rows]),
            jnp.asarray(dataset.train_labels[rows]),
        )

    blocks = indices.reshape(-1, updates_per_block, indices.shape[-1])
    carry = (classifier.params, optimizer.init(classifier.params))
    run = jax.jit(block).lower(carry, batches_of(blocks[0])).compile()
    accuracy = jax.jit(classifier.accuracy)

    yield Evaluation(0, float(accuracy(carry[0], held_out)), math.nan)
    for done, rows in enumerate(blocks, start=1):
        batches = jax.block_until_ready(batches_of(rows))
        start = time.perf_counter()
        carry = jax.block_until_ready(run(carry, batches))
        seconds = time.perf_counter() - start
        yield Evaluation(
            done * updates_per_block,
            float(accuracy(carry[0], held_out)),
            seconds / updates_per_block,
        )
