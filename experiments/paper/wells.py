"""A loss of two variables with a sharp and a wide well; both smoothings of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import lejax
from experiments.common import plotting
from experiments.common.quadrature import kernel


class Well(NamedTuple):
    """A Gaussian well; the plateau around the wells is at 0."""

    depth: float
    centre: tuple[float, float]
    width: float


WELLS = {"sharp": Well(5.0, (-1.5, 0.0), 0.2), "wide": Well(3.0, (1.2, 0.0), 0.8)}
NEAR = np.linspace(-0.5, 0.5, 101)  # the search range of a well's minimum
POINTS = np.arange(-12, 12.001, 0.03)  # of the integration, along each axis


def loss(x: Any) -> Any:
    """Two wells and ripples at x (…, 2), an array of NumPy or JAX."""
    xp = x.__array_namespace__()
    value = 0.15 * xp.sum(xp.cos(9 * x), axis=-1)
    for well in WELLS.values():
        gap = x - xp.asarray(well.centre, dtype=x.dtype)
        scaled = xp.sum(gap**2, axis=-1) / (2 * well.width**2)
        value = value - well.depth * xp.exp(-scaled)
    return value


def on_grid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The loss on a grid, (len(x), len(y))."""
    return loss(np.stack(np.meshgrid(x, y, indexing="ij"), -1))


class Regularisation(NamedTuple):
    """F = finish(E_φ start(f)), and the samplers that estimate it."""

    color: str
    file: str
    start: Callable[[Any], Any]
    finish: Callable[[Any], Any]
    derivative: Callable[[Any], Any]  # of finish
    samplers: dict[str, Callable[[int], lejax.Sampler]]


REGULARISATIONS = {
    "local entropy": Regularisation(
        plotting.COLORS["IS"], "figure_2_1.png",
        lambda f: np.exp(-f), lambda mean: -np.log(mean), lambda mean: -1 / mean,
        {"importance": lejax.importance},
    ),
    "heat": Regularisation(
        plotting.COLORS["HR"], "figure_2_2.png",
        lambda f: f, lambda mean: mean, np.ones_like,
        {"pathwise": lejax.pathwise, "score function": lejax.score_function},
    ),
}  # fmt: skip


def surface(reg: Regularisation, g: np.ndarray, x: Any, y: Any, tau: float) -> Any:
    """The smoothed loss on a grid (len(x), len(y)), for g = start(f); f for τ = 0."""
    if tau == 0:
        return on_grid(x, y)
    return reg.finish(kernel(x, POINTS, tau) @ g @ kernel(y, POINTS, tau).T)


def exact(reg: Regularisation, g: np.ndarray, at: np.ndarray, tau: float) -> Any:
    """(F, ∂F) at points (P, 2): (P, 3), by ∂E g(X) = E g(X)(X - x)/τ."""
    x, y = (kernel(at[:, i], POINTS, tau) for i in (0, 1))
    lever_x, lever_y = ((POINTS - at[:, i, None]) / tau for i in (0, 1))
    value, *slopes = (
        np.sum((a @ g) * b, -1) for a, b in ((x, y), (x * lever_x, y), (x, y * lever_y))
    )
    scale = reg.derivative(value)
    return np.stack([reg.finish(value), *(scale * s for s in slopes)], -1)


class Minimum(NamedTuple):
    """The lowest point of a well, its depth, and whether it is an interior minimum."""

    at: np.ndarray
    depth: float
    inside: bool


def minimum(reg: Regularisation, g: np.ndarray, well: Well, tau: float) -> Minimum:
    """The minimum of the smoothed loss near the centre of a well."""
    x, y = (centre + NEAR for centre in well.centre)
    values = surface(reg, g, x, y, tau)
    i, j = np.unravel_index(values.argmin(), values.shape)
    inside = 0 < i < len(NEAR) - 1 and 0 < j < len(NEAR) - 1
    return Minimum(np.array([x[i], y[j]]), -float(values[i, j]), bool(inside))
