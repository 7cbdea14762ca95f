"""Networks that compute with ±1 weights, or with int8 weights and activations.

Against them stand the same networks with straight-through gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import data, problem

HIDDEN = 100
# Steps of the weights and of the activations in int8.
WEIGHT_STEP, ACTIVATION_STEP = 1 / 64, 1 / 16


def problems(
    dataset: data.Dataset, *, quick: bool = False
) -> dict[str, problem.Problem]:
    """Both networks, 784-100-10."""
    pixels, classes = dataset.train_images.shape[1], int(dataset.train_labels.max()) + 1
    widths = pixels, 8 if quick else HIDDEN, classes

    def starts(seed: int) -> tuple[tuple[jax.Array, ...], list[Any]]:
        keys = jax.random.split(jax.random.key(seed))
        sizes = itertools.pairwise(widths)
        layers = [problem.glorot(k, *size) for k, size in zip(keys, sizes, strict=True)]
        return tuple(keys), layers

    def of_one_scale(seed: int) -> list[Any]:
        """Latent weights, whose signs alone count: of the same scale in all layers."""
        keys, layers = starts(seed)
        return [
            layer | {"kernel": 0.1 * jax.random.normal(key, layer["kernel"].shape)}
            for key, layer in zip(keys, layers, strict=True)
        ]

    return {
        name: problem.Problem(
            params=params,
            data=problem.images(dataset),
            batch=problem.random_rows,
            loss=cross_entropy(forward(rounded)),
            score=problem.accuracy(forward(rounded)),
            level=0.8,
            measure="test accuracy",
            reference=cross_entropy(forward(straight_through)),
        )
        for name, forward, params in (
            ("±1", binary, of_one_scale),
            ("int8", int8, lambda seed: starts(seed)[1]),
        )
    }


Quantizer = Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]


def rounded(quantize: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """What the network computes with."""
    return quantize(x)


def straight_through(
    quantize: Callable[[jax.Array], jax.Array], x: jax.Array
) -> jax.Array:
    """The same, with the gradient of the identity."""
    return x + jax.lax.stop_gradient(quantize(x) - x)


def sign(x: jax.Array) -> jax.Array:
    """±1, never 0."""
    return jnp.where(x >= 0, 1.0, -1.0)


def steps(step: float) -> Callable[[jax.Array], jax.Array]:
    """The nearest of 255 multiples of a step."""
    return lambda x: jnp.clip(jnp.round(x / step), -127, 127) * step


def binary(quantizer: Quantizer) -> Callable[[Any, jax.Array], jax.Array]:
    """Logits by weights of ±1, over the root of the layer's width."""

    def logits(params: Any, images: jax.Array) -> jax.Array:
        hidden, last = params
        for_all = images @ quantizer(sign, hidden["kernel"]) / images.shape[-1] ** 0.5
        units = jax.nn.relu(for_all + hidden["bias"])
        product = units @ quantizer(sign, last["kernel"]) / units.shape[-1] ** 0.5
        return product + last["bias"]

    return logits


def int8(quantizer: Quantizer) -> Callable[[Any, jax.Array], jax.Array]:
    """Logits by weights and activations of 255 values each."""

    def logits(params: Any, images: jax.Array) -> jax.Array:
        hidden, last = params
        images = quantizer(steps(1 / 127), images)
        product = images @ quantizer(steps(WEIGHT_STEP), hidden["kernel"])
        units = quantizer(steps(ACTIVATION_STEP), jax.nn.relu(product + hidden["bias"]))
        return units @ quantizer(steps(WEIGHT_STEP), last["kernel"]) + last["bias"]

    return logits


def cross_entropy(
    logits: Callable[[Any, jax.Array], jax.Array],
) -> Callable[[Any, Any], jax.Array]:
    """Of the quantised network."""

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, images), labels
        ).mean()

    return loss
