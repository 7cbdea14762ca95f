"""What a search without gradients is given, and by what it is judged."""

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
    """An objective, its data, and a score that is higher where it is better.

    Attributes:
        params: `params(seed)`, where a search starts.
        data: `data(seed, validation)`, what batches and scores are taken from.
        batch: `batch(key, data)`, that of an update; all of its samples share it.
        loss: `loss(params, batch)`, what is minimised, by its values alone.
        score: `score(params, data)`, on what is held out.
        level: the score that is to be reached.
        measure: what the score is, in words.
        reference: the same with gradients, `reference(params, batch)`, if there is one.
        by_example: whether the examples see apart what the layers draw.
        covariances: those that lejax learns as well.
        scales: of σ, between which every search tries it.
        rates: of Adam, likewise.
        weights: what is computed with, of parameters that are rounded for it, if so.
        loss_of_weights: the loss with any weights, rounded or not; there examples see
            apart what the layers draw.
        settings_of: the name of the problem whose settings are taken.
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
    """The share of held-out images that a network gets right: `score` of a problem."""

    def of(params: Any, data: Any) -> jax.Array:
        inputs, labels = data["test"]
        return (logits(params, inputs).argmax(-1) == labels).mean()

    return of


def cross_entropy(
    logits: Callable[[Any, jax.Array], jax.Array],
) -> Callable[[Any, Any], jax.Array]:
    """The mean over a batch, of a network: `loss` of a problem."""

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
    """A dense layer at its start."""
    return {"kernel": kernel(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}
