"""In how many of 4000 runs the 95 % interval of the free energy holds the truth.

Of a linear loss, whose weights are lognormal, and of a quadratic one at its minimum,
whose weights are bounded; by the share of effective samples. No data are needed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import lejax
from experiments.common import results

DIMENSION = 4
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


def main(config: Config) -> None:
    """Run all settings, print a table, and write it down."""
    keys = jax.random.split(jax.random.key(0), config.replicates)
    table = []
    print(f"{'loss':<10} {'draws':<6} {'J':>5} {'ESS':>6} {'error':>6} told  covered")
    for name, (value_fn, of_share) in LOSSES.items():
        for antithetic in (True, False):
            for samples in SAMPLES:
                sampler = lejax.importance(samples, antithetic=antithetic)

                def run(key, a, sampler=sampler, value_fn=value_fn):
                    _, _, info = sampler.estimate(
                        key,
                        (),
                        jnp.zeros(DIMENSION),
                        value_fn=lambda x: value_fn(x, a),
                        tau=1.0,
                    )
                    return info.objective, info.standard_error

                runs = jax.jit(jax.vmap(run, (0, None)))
                for share in SHARES:
                    a, truth = of_share(share)
                    found, error = map(np.asarray, runs(keys, jnp.float32(a)))
                    told = np.isfinite(error)
                    if not told.any():
                        continue
                    covered = np.abs(found - truth)[told] < 1.96 * error[told]
                    row = {
                        "loss": name,
                        "draws": "pairs" if antithetic else "plain",
                        "samples": samples,
                        "effective": round(share * samples, 1),
                        "error": round(float(error[told].mean()), 3),
                        "told": round(float(told.mean()), 3),
                        "covered": round(float(covered.mean()), 3),
                    }
                    table.append(row)
                    print(
                        "{loss:<10} {draws:<6} {samples:>5} {effective:>6} {error:>6} "
                        "{told:.2f}  {covered:.3f}".format(**row),
                        flush=True,
                    )
    results.write_json(config.output / "coverage.json", config, table=table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
