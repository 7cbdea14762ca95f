"""In how many of 4000 runs the 95 % interval of the free energy holds the truth.

Of a linear loss, whose weights are lognormal, and of a quadratic one at its minimum,
whose weights are bounded, by the share of effective samples; and of a curved density
from the Gaussian of its moments, whose weights have a heavy tail. No data are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import lejax
from experiments.common import results

DIMENSION = 4
CURVED_SAMPLES = 1000, 10_000
SHARES = (0.5, 0.2, 0.1, 0.05)
SAMPLES = (50, 200, 1000)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is done."""

    replicates: int = 4000
    """Runs of every setting."""
    output: Path = Path("results")
    """Folder of the results."""


def linear(share: float) -> tuple[float, float]:
    """The slope of f = aΣx with ESS/J = exp(-da²), and F at 0; τ = β = 1."""
    square = -np.log(share) / DIMENSION
    return float(np.sqrt(square)), -DIMENSION * square / 2


def quadratic(share: float) -> tuple[float, float]:
    """The curvature of f = a|x|²/2 with ESS/J = (√(1 + 2a)/(1 + a))ᵈ, and F at 0."""
    ratio = share ** (2 / DIMENSION)  # (1 + 2a)/(1 + a)²
    curvature = (1 - ratio + np.sqrt(1 - ratio)) / ratio
    return float(curvature), DIMENSION / 2 * float(np.log1p(curvature))


LOSSES = {
    "linear": (lambda x, a: a * jnp.sum(x), linear),
    "quadratic": (lambda x, a: a * jnp.sum(x**2) / 2, quadratic),
}


def curved(u: jax.Array) -> jax.Array:
    """f + log φ for the curved density of `gaussian`, φ of its moments, at x + Lu."""
    z = u * jnp.sqrt(jnp.array([100.0, 19.0]))
    f = (z[0] / 10) ** 2 / 2 + (z[1] - 0.03 * (z[0] ** 2 - 100)) ** 2 / 2
    return f - jnp.sum(u**2) / 2


CURVED_TRUTH = float(np.log(19) / 2)


class Runs(NamedTuple):
    """F of all replicates, its errors, effective samples, and k̂."""

    objective: np.ndarray
    error: np.ndarray
    effective: np.ndarray
    shape: np.ndarray

    def row(
        self,
        loss: str,
        antithetic: bool,
        samples: int,
        truth: float,
        share: float | None = None,
    ) -> Any:
        """A row of the table, at an expected ESS/J; None where no error was told."""
        told = np.isfinite(self.error)
        if not told.any():
            return None
        gap = np.abs(self.objective - truth)[told]
        row = {
            "loss": loss,
            "draws": "pairs" if antithetic else "plain",
            "samples": samples,
            "share": share,
            "effective": round(float(self.effective.mean()), 1),
            "pareto_k": round(float(self.shape.mean()), 2),
            "error": round(float(self.error[told].mean()), 3),
            "told": round(float(told.mean()), 3),
            "covered": round(float((gap < 1.96 * self.error[told]).mean()), 3),
        }
        print(
            "{loss:<10} {draws:<6} {samples:>6} {effective:>6} {pareto_k:>5} "
            "{error:>6} {told:.2f}  {covered:.3f}".format(**row),
            flush=True,
        )
        return row


def replicates(
    sampler: lejax.Sampler, value_fn: Callable[..., jax.Array], dimension: int
) -> Callable[..., Runs]:
    """Independent estimates at 0, by their keys, of a loss with a number in it."""

    def run(key: jax.Array, a: jax.Array) -> Any:
        _, _, info = sampler.estimate(
            key,
            (),
            jnp.zeros(dimension),
            value_fn=lambda x: value_fn(x, a),
            tau=1.0,
        )
        told = info.objective, info.standard_error
        return *told, info.effective_sample_size, info.pareto_k

    runs = jax.jit(lambda keys, a: jax.lax.map(lambda key: run(key, a), keys))
    return lambda keys, a: Runs(*map(np.asarray, runs(keys, jnp.float32(a))))


def main(config: Config) -> None:
    """Run all settings, print a table, and write it down."""
    keys = jax.random.split(jax.random.key(0), config.replicates)
    table = []
    print(f"{'loss':<10} {'draws':<6} {'J':>6} {'ESS':>6} {'k':>5} error told  covered")
    for antithetic in (True, False):
        for name, (value_fn, of_share) in LOSSES.items():
            for samples in SAMPLES:
                sampler = lejax.importance(samples, antithetic=antithetic)
                runs = replicates(sampler, value_fn, DIMENSION)
                for share in SHARES:
                    a, truth = of_share(share)
                    table.append(
                        runs(keys, a).row(name, antithetic, samples, truth, share)
                    )
        for samples in CURVED_SAMPLES:
            sampler = lejax.importance(samples, antithetic=antithetic)
            runs = replicates(sampler, lambda u, a: curved(u) + 0 * a, 2)
            found = runs(keys, 0).row("curved", antithetic, samples, CURVED_TRUTH)
            table.append(found)
    table = [row for row in table if row is not None]
    results.write_json(config.output / "coverage.json", config, table=table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
