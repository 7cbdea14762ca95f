"""A spiking network: leaky neurons that fire at a hard threshold, 784-100-10.

It is compared with the same network with a surrogate gradient of the threshold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.applications.gradient_free import problem
from experiments.common import data

STEPS, DECAY, THRESHOLD, SLOPE = 25, 0.9, 1.0, 10.0


def problems(
    dataset: data.Dataset, *, quick: bool = False
) -> dict[str, problem.Problem]:
    """The problem of the single network."""
    pixels, hidden, classes = dataset.widths(8 if quick else 100)

    def params(seed: int) -> Any:
        first, second = jax.random.split(jax.random.key(seed))
        return {
            "hidden": problem.dense(first, pixels, hidden),
            "readout": problem.dense(second, hidden, classes),
        }

    return {
        f"{pixels}-{hidden}-{classes}": problem.Problem(
            params=params,
            data=problem.images(dataset),
            batch=problem.random_rows,
            loss=problem.cross_entropy(logits),
            score=problem.accuracy(logits),
            level=0.8,
            measure="test accuracy",
            reference=problem.cross_entropy(
                functools.partial(logits, fires=fires_with_gradient)
            ),
            by_example=True,
        )
    }


def fires(membrane: jax.Array) -> jax.Array:
    """1 if the membrane is above its threshold, else 0."""
    return (membrane > THRESHOLD).astype(membrane.dtype)


@jax.custom_jvp
def fires_with_gradient(membrane: jax.Array) -> jax.Array:
    """`fires` with the derivative of a fast sigmoid (Zenke and Ganguli)."""
    return fires(membrane)


@fires_with_gradient.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    (membrane,), (tangent,) = primals, tangents
    steep = 1 / (1 + SLOPE * jnp.abs(membrane - THRESHOLD)) ** 2
    return fires(membrane), steep * tangent


def logits(
    params: Any, images: jax.Array, fires: Callable[[jax.Array], jax.Array] = fires
) -> jax.Array:
    """A linear readout of the firing rates of neurons under a constant current."""
    current = images @ params["hidden"]["kernel"] + params["hidden"]["bias"]

    def step(membrane: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        membrane = DECAY * membrane + (1 - DECAY) * 4 * current
        spikes = fires(membrane)
        return membrane * (1 - spikes), spikes

    _, spikes = jax.lax.scan(step, jnp.zeros_like(current), length=STEPS)
    rates = spikes.mean(0)
    return 4 * rates @ params["readout"]["kernel"] + params["readout"]["bias"]
