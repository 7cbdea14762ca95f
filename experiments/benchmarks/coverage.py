"""The coverage of the 95 % interval of the free energy, in 4000 runs.

The losses are smoothed by N(0, I) with β = 1, at several shares of effective samples:
a linear one, whose weights are lognormal; quadratic ones, at their minimum and off it;
two wells; and a curved density, drawn from the Gaussian of its moments, whose weights
have a heavy tail. No data are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.optimize import brentq

import lejax
from experiments.common import results


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    replicates: int = 4000
    """Runs of every setting."""
    samples: tuple[int, ...] = (50, 200, 1000, 4000)
    """J, the number of samples."""
    shares: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    """Expected shares of effective samples."""
    output: Path = Path("results")
    """Folder of the results."""


class Problem(NamedTuple):
    """A loss f(x, a), the a for this share, F at 0, and the dimension."""

    value_fn: Callable[[jax.Array, Any], jax.Array]
    a: float
    free_energy: float
    dimension: int


def solved(share: Callable[[float], float], wanted: float, most: float) -> float | None:
    """The point at which a falling share has this value; None if it starts lower."""
    if share(0.0) < wanted:
        return None
    found: Any = brentq(lambda a: share(a) - wanted, 0, most)
    return float(found)


def linear(share: float) -> Problem:
    """f = aΣx: ESS/J = exp(-da²)."""
    square = -np.log(share) / 4
    return Problem(lambda x, a: a * x.sum(), float(np.sqrt(square)), -2 * square, 4)


def quadratic(share: float, dimension: int) -> Problem:
    """f = a|x|²/2: ESS/J = (√(1 + 2a)/(1 + a))ᵈ."""
    ratio = share ** (2 / dimension)  # (1 + 2a)/(1 + a)²
    a = float((1 - ratio + np.sqrt(1 - ratio)) / ratio)
    free_energy = dimension / 2 * float(np.log1p(a))
    return Problem(lambda x, a: a * jnp.sum(x**2) / 2, a, free_energy, dimension)


def beside(share: float, dimension: int, c: float = 0.5) -> Problem | None:
    """f = c|x - a e₁|²/2, off its minimum."""

    def log_mean(c: float, a: float) -> float:
        """log E exp(-c|x - a e₁|²/2)."""
        return -dimension / 2 * np.log1p(c) - c * a**2 / (2 * (1 + c))

    a = solved(
        lambda a: np.exp(2 * log_mean(c, a) - log_mean(2 * c, a)), share, most=50.0
    )
    if a is None:
        return None

    def value_fn(x: jax.Array, a: Any) -> jax.Array:
        return c * (jnp.sum(x[1:] ** 2) + (x[0] - a) ** 2) / 2

    return Problem(value_fn, a, -float(log_mean(c, a)), dimension)


def wells(share: float, width: float = 0.3) -> Problem | None:
    """Two wells of deviation .3 at ±a, along one of two dimensions."""
    grid = np.linspace(-12, 12, 100_001)
    phi = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi) * (grid[1] - grid[0])

    def weights(a: float) -> np.ndarray:
        each = np.stack([grid - a, grid + a])
        return np.exp(-(each**2) / (2 * width**2)).mean(0)

    a = solved(
        lambda a: (weights(a) @ phi) ** 2 / (weights(a) ** 2 @ phi), share, most=5.0
    )
    if a is None:
        return None

    def value_fn(x: jax.Array, a: Any) -> jax.Array:
        each = jnp.stack([x[0] - a, x[0] + a]) ** 2 / (2 * width**2)
        return np.log(2.0) - jax.nn.logsumexp(-each)

    return Problem(value_fn, a, -float(np.log(weights(a) @ phi)), 2)


def curved(bend: float) -> Problem:
    """f + log φ is u₀²/2 + (s u₁ - a (u₀² - 1))²/2, in units of its own deviations."""

    def value_fn(u: jax.Array, a: Any) -> jax.Array:
        beyond = jnp.sqrt(1 + 2 * a**2) * u[1] - a * (u[0] ** 2 - 1)
        return u[0] ** 2 / 2 + beyond**2 / 2 - jnp.sum(u**2) / 2

    return Problem(value_fn, bend, float(np.log1p(2 * bend**2)) / 2, 2)


# The third one is the example of `gaussian`, √19.
BENDS = (0.5, 1.0, 3.0, 10.0)


def problems(config: Config) -> Iterator[tuple[str, list[Problem]]]:
    """The problems by name, for all shares that exist."""

    def of(make: Callable[[float], Problem | None]) -> list[Problem]:
        return [found for found in map(make, config.shares) if found is not None]

    yield "linear", of(linear)
    for dimension in (2, 20):
        yield f"quadratic {dimension}", of(lambda s, d=dimension: quadratic(s, d))
        yield f"beside {dimension}", of(lambda s, d=dimension: beside(s, d))
    yield "wells", of(wells)
    yield "curved", [curved(bend) for bend in BENDS]


class Runs(NamedTuple):
    """F of all replicates, its errors, effective samples, and k̂."""

    objective: np.ndarray
    error: np.ndarray
    effective: np.ndarray
    shape: np.ndarray

    def row(self, loss: str, draws: str, samples: int, problem: Problem) -> Any:
        """A row of the table; None if less than one in twenty runs has an error."""
        told = np.isfinite(self.error)
        if told.mean() < 0.05:
            return None
        gap = np.abs(self.objective - problem.free_energy)[told]
        row = {
            "loss": loss,
            "draws": draws,
            "samples": samples,
            "a": round(problem.a, 3),
            "effective": round(float(self.effective.mean()), 1),
            "pareto_k": round(float(self.shape.mean()), 2),
            "error": round(float(self.error[told].mean()), 3),
            "told": round(float(told.mean()), 3),
            "covered": round(float((gap < 1.96 * self.error[told]).mean()), 3),
        }
        print(
            "{loss:<12} {draws:<6} {samples:>5} {effective:>7} {pareto_k:>5} "
            "{error:>6} {told:.2f}  {covered:.3f}".format(**row),
            flush=True,
        )
        return row


def replicates(sampler: lejax.Sampler, problem: Problem) -> Callable[..., Runs]:
    """Independent estimates at 0, as a function of their keys and the loss's a."""

    def run(key: jax.Array, a: jax.Array) -> Any:
        _, _, info = sampler.estimate(
            key,
            (),
            jnp.zeros(problem.dimension),
            value_fn=lambda x: problem.value_fn(x, a),
            tau=1.0,
        )
        told = info.objective, info.standard_error
        return *told, info.effective_sample_size, info.pareto_k

    runs = jax.jit(lambda keys, a: jax.lax.map(lambda key: run(key, a), keys))
    return lambda keys, a: Runs(*map(np.asarray, runs(keys, jnp.float32(a))))


def main(config: Config) -> None:
    """Run all settings, print a table, and write it down."""
    keys = jax.random.split(jax.random.key(1), config.replicates)
    table = []
    print(f"{'loss':<12} {'draws':<6} {'J':>5} {'ESS':>7} {'k':>5} error told  covered")
    for draws in ("pairs", "plain"):
        for name, of_shares in problems(config):
            for samples in config.samples:
                sampler = lejax.importance(samples, antithetic=draws == "pairs")
                runs = replicates(sampler, of_shares[0])
                for one in of_shares:
                    table.append(runs(keys, one.a).row(name, draws, samples, one))
    table = [row for row in table if row is not None]
    mostly = [row for row in table if row["told"] >= 0.5]
    covered = [row["covered"] for row in mostly]
    print(f"told by most runs: covered {min(covered):.3f} to {max(covered):.3f}")
    results.write_json(config.output / "coverage.json", config, table=table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
