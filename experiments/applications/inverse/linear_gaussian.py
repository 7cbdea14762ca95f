"""A function from 50 blurred values: 1,000 unknowns, with a posterior in closed form.

The function is a Brownian bridge at 1,000 places, by its Karhunen-Loève coefficients.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.applications.inverse.problem import (
    InverseProblem,
    standard,
    with_noise,
)

DIMENSIONS, OBSERVATIONS, WIDTH, DEVIATION = 1000, 50, 0.03, 0.02


def problem() -> InverseProblem:
    """The inverse problem of this file."""
    places = (np.arange(DIMENSIONS) + 0.5) / DIMENSIONS
    k = 1 + np.arange(DIMENSIONS)
    basis = np.sqrt(2) * np.sin(np.pi * np.outer(places, k)) / (np.pi * k)
    middles = (np.arange(OBSERVATIONS) + 0.5) / OBSERVATIONS
    blur = np.exp(-(((middles[:, None] - places) / WIDTH) ** 2) / 2)
    blur /= blur.sum(1, keepdims=True)
    double = blur @ basis
    matrix, field = (jnp.asarray(x, jnp.float32) for x in (double, basis))

    def forward(u: jax.Array) -> jax.Array:
        return matrix @ u

    def exact(y: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """By the Kalman gain: it inverts a matrix of the size of the observations."""
        seen = double @ double.T + DEVIATION**2 * np.eye(OBSERVATIONS)
        gain = np.linalg.solve(seen, double)
        return gain.T @ np.asarray(y, float), np.eye(DIMENSIONS) - gain.T @ double

    return InverseProblem(
        dimensions=DIMENSIONS,
        forward=forward,
        covariance=DEVIATION**2,
        truth=standard(DIMENSIONS),
        observe=with_noise(forward, DEVIATION),
        field=lambda u: field @ u,
        solves=20_000,
        covariances=("diagonal", "low_rank"),
        strategies=("Sep_CMA_ES", "LM_MA_ES"),
        exact=exact,
    )
