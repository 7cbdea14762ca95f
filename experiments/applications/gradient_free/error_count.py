"""The error rate of the paper's two networks, with partly wrong labels.

It is compared with the cross-entropy with gradients, on the same labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.applications.gradient_free import problem
from experiments.common import data, models

NETWORKS = {"784-10": (), "784-200-10": (200,)}
NOISES = (0.0, 0.2, 0.4)


def problems(
    dataset: data.Dataset, *, quick: bool = False
) -> dict[str, problem.Problem]:
    """Both networks at every share of wrong labels; settings are chosen at share 0."""
    found = {}
    for name, hidden in NETWORKS.items():
        widths = dataset.widths(*((8,) if quick and hidden else hidden))
        for noise in NOISES:
            label = f"{name}, {100 * noise:g} % wrong labels"
            found[label] = problem.Problem(
                params=lambda seed, w=widths: models.dense_classifier(w, seed).params,
                data=with_wrong_labels(dataset, noise, widths[-1]),
                batch=problem.random_rows,
                loss=error_rate(widths),
                score=problem.accuracy(models.dense_classifier(widths, 0).logits),
                level=0.8,
                measure="test accuracy",
                reference=models.dense_classifier(widths, 0).loss,
                by_example=True,
                settings_of=f"{name}, 0 % wrong labels",
            )
    return found


def error_rate(widths: tuple[int, ...]) -> Callable[[Any, Any], jax.Array]:
    """The error rate of a network on a batch, whose gradient is 0 everywhere."""
    network = models.dense_classifier(widths, 0)

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        wrong = network.logits(params, images).argmax(-1) != labels
        return jnp.mean(wrong.astype(jnp.float32))

    return loss


def with_wrong_labels(
    dataset: data.Dataset, noise: float, classes: int
) -> Callable[[int, bool], Any]:
    """Data with this share of wrong training labels, and right test labels."""

    right = problem.images(dataset)

    def of(seed: int, validation: bool) -> Any:
        found = right(seed, validation)
        images, labels = found["train"]
        rng = np.random.default_rng(seed)
        other = (labels + rng.integers(1, classes, len(labels))) % classes
        wrong = rng.random(len(labels)) < noise
        labels = jnp.where(wrong, other, labels).astype(labels.dtype)
        return found | {"train": (images, labels)}

    return of
