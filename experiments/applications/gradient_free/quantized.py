"""Networks that compute with ±1 weights, or with int8 weights and activations.

They are compared with the same networks trained by straight-through gradients.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.applications.gradient_free import problem
from experiments.common import data

HIDDEN = 100
# Steps of the weights and of the activations in int8.
WEIGHT_STEP, ACTIVATION_STEP = 1 / 64, 1 / 16


def problems(
    dataset: data.Dataset, *, quick: bool = False
) -> dict[str, problem.Problem]:
    """Both networks, 784-100-10."""
    widths = dataset.widths(8 if quick else HIDDEN)

    def params(
        kernel: jax.nn.initializers.Initializer, seed: int
    ) -> list[dict[str, jax.Array]]:
        keys = jax.random.split(jax.random.key(seed))
        return [
            problem.dense(key, *size, kernel)
            for key, size in zip(keys, itertools.pairwise(widths), strict=True)
        ]

    def problem_of(
        kernel: Quantize,
        logits: Callable[..., jax.Array],
        start: jax.nn.initializers.Initializer,
    ) -> problem.Problem:
        def network(quantizer: Quantizer) -> Callable[[Any, jax.Array], jax.Array]:
            return lambda params, images: logits(
                quantized(kernel, params, quantizer), images, quantizer
            )

        of_weights = functools.partial(logits, quantizer=rounded)
        return problem.Problem(
            params=functools.partial(params, start),
            data=problem.images(dataset),
            batch=problem.random_rows,
            loss=problem.cross_entropy(network(rounded)),
            score=problem.accuracy(network(rounded)),
            level=0.8,
            measure="test accuracy",
            reference=problem.cross_entropy(network(straight_through)),
            weights=lambda params: quantized(kernel, params, rounded),
            loss_of_weights=problem.cross_entropy(of_weights),
        )

    return {
        # Only the signs of the latent weights matter, so all layers have one scale.
        "±1": problem_of(sign, over_root_width, jax.nn.initializers.normal(0.1)),
        "int8": problem_of(steps(WEIGHT_STEP), int8, problem.GLOROT),
    }


Quantize = Callable[[jax.Array], jax.Array]
Quantizer = Callable[[Quantize, jax.Array], jax.Array]


def rounded(quantize: Quantize, x: jax.Array) -> jax.Array:
    """The values that the network computes with."""
    return quantize(x)


def straight_through(quantize: Quantize, x: jax.Array) -> jax.Array:
    """The rounded values, with the gradient of the identity."""
    return x + jax.lax.stop_gradient(quantize(x) - x)


def sign(x: jax.Array) -> jax.Array:
    """±1, never 0."""
    return jnp.where(x >= 0, 1.0, -1.0)


def steps(step: float) -> Quantize:
    """Rounding to the nearest of 255 multiples of a step."""
    return lambda x: jnp.clip(jnp.round(x / step), -127, 127) * step


def quantized(kernel: Quantize, params: Any, quantizer: Quantizer) -> Any:
    """The weights that a network computes with."""
    return [layer | {"kernel": quantizer(kernel, layer["kernel"])} for layer in params]


def over_root_width(weights: Any, images: jax.Array, quantizer: Quantizer) -> jax.Array:
    """Logits, from layers whose inputs are divided by the root of their width."""
    del quantizer
    hidden, last = weights
    inputs = images / images.shape[-1] ** 0.5
    units = jax.nn.relu(inputs @ hidden["kernel"] + hidden["bias"])
    return units / units.shape[-1] ** 0.5 @ last["kernel"] + last["bias"]


def int8(weights: Any, images: jax.Array, quantizer: Quantizer) -> jax.Array:
    """Logits, from activations with 255 values."""
    hidden, last = weights
    product = quantizer(steps(1 / 127), images) @ hidden["kernel"]
    units = quantizer(steps(ACTIVATION_STEP), jax.nn.relu(product + hidden["bias"]))
    return units @ last["kernel"] + last["bias"]
