"""The covariance that `gaussian` learns for a curved posterior, by widening.

f(z) = (z₀/10)²/2 + (z₁ - .03(z₀² - 100))²/2. The posterior has standard deviations 10
and √19. The table has those of Σ in these units, with effective samples and k̂. No data
are needed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import lejax
from experiments.common import results

DEVIATIONS = np.array([10.0, np.sqrt(19.0)])


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    samples: tuple[int, ...] = (1000, 10_000)
    """J of an update."""
    widenings: tuple[float, ...] = (1.0, 1.5, 2.0)
    """Standard deviations of the draws, in units of those of Σ."""
    rates: tuple[float, ...] = (0.2, 0.02)
    """ρ, the learning rate of Σ."""
    updates: int = 400
    """Updates; the second half is averaged."""
    runs: int = 4
    """Number of independent runs."""
    output: Path = Path("results")
    """Folder for curved.json."""


def curved(z: jax.Array) -> jax.Array:
    """The negative logarithm of the density."""
    return (z[0] / 10) ** 2 / 2 + (z[1] - 0.03 * (z[0] ** 2 - 100)) ** 2 / 2


def learnt(config: Config, samples: int, rate: float, widening: float) -> Any:
    """Deviations of Σ in units of the density's, effective samples, and k̂."""

    def run(key: jax.Array) -> Any:
        head = lejax.gaussian(
            lejax.importance(samples),
            1.0,
            key=key,
            covariance="full",
            temperature=1.0,
            covariance_rate=rate,
            widening=widening,
        )
        tx: Any = optax.chain(head, optax.sgd(1.0))

        def update(carry: Any, _: None) -> Any:
            z, state = carry
            updates, state = tx.update(None, state, z, value_fn=curved)
            z = optax.apply_updates(z, updates)
            told = state[0].covariance.variances(z), state[0].info
            return (z, state), told

        z = jnp.zeros(2)
        _, (variances, info) = jax.lax.scan(
            update, (z, tx.init(z)), None, length=config.updates
        )
        told = variances, info.effective_sample_size, info.pareto_k
        return jax.tree.map(lambda x: x[config.updates // 2 :].mean(0), told)

    keys = jax.random.split(jax.random.key(0), config.runs)
    found = jax.jit(jax.vmap(run))(keys)
    variances, effective, shape = (np.asarray(x, np.float64).mean(0) for x in found)
    return np.sqrt(variances) / DEVIATIONS, float(effective), float(shape)


def main(config: Config) -> None:
    """Run all settings, print a table, and write it down."""
    table = []
    print(f"{'J':>6} {'rate':>5} {'widening':>8}  deviations    ESS      k")
    for samples in config.samples:
        for rate in config.rates:
            for widening in config.widenings:
                deviations, effective, shape = learnt(config, samples, rate, widening)
                row = {
                    "samples": samples,
                    "rate": rate,
                    "widening": widening,
                    "deviations": deviations.round(3).tolist(),
                    "effective": round(effective, 1),
                    "pareto_k": round(shape, 2),
                }
                table.append(row)
                first, second = deviations
                print(
                    f"{samples:>6} {rate:>5} {widening:>8}  {first:.2f}  {second:.2f}  "
                    f"{effective:>8.1f}  {shape:>5.2f}",
                    flush=True,
                )
    results.write_json(config.output / "curved.json", config, table=table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
