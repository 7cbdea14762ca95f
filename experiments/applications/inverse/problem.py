"""An inverse problem whose unknowns have the prior N(0, I)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lejax


class InverseProblem(NamedTuple):
    """A forward map of whitened unknowns, and the field that they represent.

    Attributes:
        dimensions: the number of unknowns.
        forward: `forward(u)`, the observations without errors.
        covariance: the covariance of the errors: a variance, or a matrix.
        truth: `truth(key)`, the unknowns of an instance.
        observe: `observe(key, truth)`, its observations.
        field: `field(u)`, the quantity that the unknowns represent and whose error is
            reported.
        solves: the number of solves of the forward map in a run.
        covariances: the covariances that lejax learns.
        strategies: the evolution strategies for this number of unknowns.
        smooth: whether gradients through the forward map are useful.
        exact: `exact(y)`, mean and covariance of the posterior, if it has a closed
            form.
    """

    dimensions: int
    forward: Callable[[jax.Array], jax.Array]
    covariance: Any
    truth: Callable[[jax.Array], jax.Array]
    observe: Callable[[jax.Array, jax.Array], jax.Array]
    field: Callable[[jax.Array], jax.Array]
    solves: int
    covariances: tuple[str, ...]
    strategies: tuple[str, ...]
    smooth: bool = True
    exact: Callable[[jax.Array], tuple[np.ndarray, np.ndarray]] | None = None

    def loss(self, u: jax.Array, y: jax.Array) -> jax.Array:
        """The negative logarithm of the posterior density."""
        of = lejax.negative_log_posterior(
            self.forward, lambda u: -jnp.sum(u**2) / 2, y, self.covariance
        )
        return of(u)

    def error(self, u: jax.Array, truth: jax.Array) -> jax.Array:
        """The error of the field, relative to the field of the truth."""
        true = self.field(truth)
        return jnp.linalg.norm(self.field(u) - true) / jnp.linalg.norm(true)


def with_noise(
    forward: Callable[[jax.Array], jax.Array], deviation: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Independent errors of this standard deviation: `observe` of a problem."""

    def observe(key: jax.Array, truth: jax.Array) -> jax.Array:
        clean = forward(truth)
        return clean + deviation * jax.random.normal(key, clean.shape)

    return observe


def standard(dimensions: int) -> Callable[[jax.Array], jax.Array]:
    """A draw of the prior: `truth` of a problem."""
    return lambda key: jax.random.normal(key, (dimensions,))
