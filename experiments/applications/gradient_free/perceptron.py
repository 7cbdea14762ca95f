"""The binary perceptron: N = 1001 weights of ±1 that classify αN random patterns.

By Baldassi and others, solutions in dense clusters, which local entropy finds, exist up
to large loads α. Local search without relearning stops at about .41.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.applications.gradient_free import problem
from experiments.common import data

SIZE = 1001
LOADS = (0.1, 0.2, 0.3, 0.4, 0.5)


def problems(
    dataset: data.Dataset | None = None, *, quick: bool = False
) -> dict[str, problem.Problem]:
    """A problem for every load; settings are chosen at the middle one on other data."""
    del dataset
    size = 51 if quick else SIZE

    def params(seed: int) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), (size,))

    def instance(seed: int, validation: bool, load: float) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), int(validation))
        patterns = jax.random.rademacher(key, (int(load * size), size), jnp.float32)
        return {"patterns": patterns}

    return {
        f"α = {load:g}": problem.Problem(
            params=params,
            data=lambda seed, validation, load=load: instance(seed, validation, load),
            batch=lambda key, data: data["patterns"],
            loss=lambda params, patterns: mistakes(signs(params), patterns),
            score=lambda params, data: 1 - mistakes(signs(params), data["patterns"]),
            level=1.0,
            measure="share of patterns",
            settings_of="α = 0.3",
            covariances=("diagonal",),
            scales=(0.03, 3.0),
            rates=(0.01, 1.0),
            weights=signs,
            loss_of_weights=mistakes,
        )
        for load in LOADS
    }


def signs(params: jax.Array) -> jax.Array:
    """The weights, ±1."""
    return jnp.where(params >= 0, 1.0, -1.0)


def mistakes(weights: jax.Array, patterns: jax.Array) -> jax.Array:
    """The share of misclassified patterns (P, N), which include their labels' signs."""
    return jnp.mean((patterns @ weights < 0).astype(jnp.float32))
