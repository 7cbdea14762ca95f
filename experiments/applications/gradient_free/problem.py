"""A problem of the comparison: the objective of a search, its data and its score."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common import data
from experiments.common.training import held_out

BATCH = 100
GLOROT = jax.nn.initializers.glorot_uniform()


class Problem(NamedTuple):
    """An objective, its data, and a score, for which higher is better.

    Attributes:
        params: `params(seed)`, the parameters at the start.
        data: `data(seed, validation)`, the data for batches and scores.
        batch: `batch(key, data)`, the batch of an update, shared by all its samples.
        loss: `loss(params, batch)`, which is minimised by its values alone.
        score: `score(params, data)`, on held-out data.
        level: the score to be reached.
        measure: the name of the score.
        reference: `reference(params, batch)`, a similar loss with gradients, if any.
        by_example: whether the loss has credit by example.
        covariances: the covariances that lejax also learns.
        scales: the bounds of σ for every search.
        rates: the bounds of Adam's rate.
        weights: rounds the parameters to the weights of the network, if it does so.
        loss_of_weights: the loss as a function of the weights, rounded or not, which
            has credit by example.
        settings_of: the name of the problem from which settings are taken.
    """

    params: Callable[[int], Any]
    data: Callable[[int, bool], Any]
    batch: Callable[[jax.Array, Any], Any]
    loss: Callable[[Any, Any], jax.Array]
    score: Callable[[Any, Any], jax.Array]
    level: float
    measure: str
    reference: Callable[[Any, Any], jax.Array] | None = None
    by_example: bool = False
    covariances: tuple[str, ...] = ()
    scales: tuple[float, float] = (0.003, 0.3)
    rates: tuple[float, float] = (0.001, 0.1)
    weights: Callable[[Any], Any] | None = None
    loss_of_weights: Callable[[Any, Any], jax.Array] | None = None
    settings_of: str = ""


def images(dataset: data.Dataset) -> Callable[[int, bool], Any]:
    """Training images, and others for the score: `data` of a problem."""

    @functools.cache
    def split_by(validation: bool) -> Any:
        split = held_out(dataset) if validation else dataset
        return {
            "train": (jnp.asarray(split.train_images), jnp.asarray(split.train_labels)),
            "test": (jnp.asarray(split.test_images), jnp.asarray(split.test_labels)),
        }

    return lambda seed, validation: split_by(validation)


def random_rows(key: jax.Array, data: Any) -> Any:
    """A batch of training images: `batch` of a problem."""
    rows = jax.random.randint(key, (BATCH,), 0, len(data["train"][1]))
    return jax.tree.map(lambda leaf: leaf[rows], data["train"])


def accuracy(logits: Callable[[Any, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """The accuracy of a network on held-out images: `score` of a problem."""

    def of(params: Any, data: Any) -> jax.Array:
        inputs, labels = data["test"]
        return (logits(params, inputs).argmax(-1) == labels).mean()

    return of


def cross_entropy(
    logits: Callable[[Any, jax.Array], jax.Array],
) -> Callable[[Any, Any], jax.Array]:
    """The mean cross-entropy of a network on a batch: `loss` of a problem."""

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, images), labels
        ).mean()

    return loss


def dense(
    key: jax.Array,
    inputs: int,
    outputs: int,
    kernel: jax.nn.initializers.Initializer = GLOROT,
) -> dict[str, jax.Array]:
    """The initial parameters of a dense layer."""
    return {"kernel": kernel(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}
