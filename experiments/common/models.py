"""The paper's dense networks in Flax NNX, as pure functions of their parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import optax
from flax import nnx

Activation = Literal["tanh", "relu"]
Initialization = Literal["glorot", "lecun", "he"]

ACTIVATIONS = {"tanh": nnx.tanh, "relu": nnx.relu}
INITIALIZERS = {
    "glorot": nnx.initializers.glorot_uniform(),
    "lecun": nnx.initializers.lecun_normal(),
    "he": nnx.initializers.he_normal(),
}


class Dense(nnx.Module):
    """Dense layers with an activation between them."""

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation,
        initialization: Initialization,
        rngs: nnx.Rngs,
    ):
        self.activation = ACTIVATIONS[activation]
        self.layers = nnx.List(
            nnx.Linear(
                inputs, outputs, kernel_init=INITIALIZERS[initialization], rngs=rngs
            )
            for inputs, outputs in itertools.pairwise(widths)
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits (batch, classes) of images (batch, pixels)."""
        *hidden, last = self.layers
        for layer in hidden:
            images = self.activation(layer(images))
        return last(images)


class Classifier(NamedTuple):
    """A network as pure functions.

    Attributes:
        params: the initial parameters.
        logits: `logits(params, images)`, (batch, classes).
        loss: `loss(params, (images, labels))`, the mean cross-entropy.
        accuracy: `accuracy(params, (images, labels))`, in [0, 1].
    """

    params: Any
    logits: Callable[..., jax.Array]
    loss: Callable[..., jax.Array]
    accuracy: Callable[..., jax.Array]


def dense_classifier(
    widths: Sequence[int],
    seed: int,
    activation: Activation = "tanh",
    initialization: Initialization = "glorot",
) -> Classifier:
    """A dense network; 784-10 and 784-200-10 are the paper's.

    The paper states neither activation nor initialisation. With tanh and Glorot's
    initialisation the paper's row for plain SGD is reproduced.
    """
    model = Dense(widths, activation, initialization, nnx.Rngs(seed))
    graph, params = nnx.split(model, nnx.Param)

    def logits(params: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(images)

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        images, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, images), labels
        ).mean()

    def accuracy(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        images, labels = batch
        return (logits(params, images).argmax(-1) == labels).mean()

    return Classifier(params, logits, loss, accuracy)
