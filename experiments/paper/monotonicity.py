"""Section 6: is the test error monotone if F_τ is?

Theorem 3.2 is about exact iterates on one loss. Algorithm 1 is nearly exact here: the
784-10 network, the same 200 images in all batches, and importance sampling with many
samples. F_τ of these images is measured separately, by the same draws at all iterates.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lejax
from experiments.common import hosts, plotting, results, training
from experiments.common.command import execute
from experiments.common.methods import Run
from experiments.common.options import Options
from experiments.common.study import dataset, fitted

TAU = 0.1
IMAGES = 200


def trajectory(options: Options) -> dict[str, list[float]]:
    """F_τ, its standard error and the test error of the iterates of Algorithm 1."""
    run = fitted(Run("IS", hidden=0, samples=20_000), options)
    updates = options.updates or (10 if options.quick else 200)
    data = dataset(options.data, options.data_dir)
    batch = (
        jnp.asarray(data.train_images[:IMAGES]),
        jnp.asarray(data.train_labels[:IMAGES]),
    )
    test = jnp.asarray(data.test_images), jnp.asarray(data.test_labels)
    params, network = training.classifiers(run, (0,), data)
    params = jax.tree.map(lambda leaf: leaf[0], params)
    step = lejax.step_fn(network.loss, lejax.importance(run.samples), TAU)
    measure = lejax.value_and_grad(network.loss, lejax.importance(run.samples), TAU)

    def update(params: Any, key: jax.Array) -> Any:
        # The same draws at all iterates, so that most noise cancels in differences.
        (value, info), _ = measure(params, jax.random.key(1), batch)
        error = 1 - network.accuracy(params, test)
        moved = step(params, key, batch)
        return moved, (value, info.standard_error, error)

    keys = jax.random.split(jax.random.key(0), updates)
    found = jax.jit(lambda params: jax.lax.scan(update, params, keys)[1])(params)
    names = ("smoothed_loss", "standard_error", "test_error")
    return {
        name: np.asarray(values, float).round(6).tolist()
        for name, values in zip(names, found, strict=True)
    }


def main(options: Options) -> None:
    """Follow Algorithm 1, count the rises of both, plot them."""
    path = options.output / "monotonicity.json"
    name = dataset(options.data, options.data_dir).name
    if (kept := hosts.of_first(results.kept(path, options, data=name))) is None:
        kept = trajectory(options)
        results.write_json(path, options, data=name, **kept)
    smoothed, error = (np.array(kept[k]) for k in ("smoothed_loss", "test_error"))
    rises = {
        "of F_τ": int((np.diff(smoothed) > 0).sum()),
        "of the test error": int((np.diff(error) > 0).sum()),
    }
    print(f"\nSection 6: Algorithm 1 nearly exactly, {len(error) - 1} updates")
    print(f"    F_τ from {smoothed[0]:.4f} to {smoothed[-1]:.4f}")
    print(f"    test error from {error[0]:.4f} to {error[-1]:.4f}")
    for what, count in rises.items():
        print(f"    updates with a rise {what}: {count}")
    results.add(path, rises=rises)
    size = {"figsize": (11, 4)}
    with plotting.figure(options.output / "monotonicity.png", 1, 2, **size) as (
        _,
        axes,
    ):
        shown = (("F$_τ$ of the training images", smoothed), ("test error", error))
        for panel, (title, values) in zip(axes[0], shown, strict=True):
            panel.plot(values, color=plotting.COLORS["IS"], lw=2)
            up = np.flatnonzero(np.diff(values) > 0) + 1
            panel.plot(up, values[up], "o", color=plotting.COLORS["SGD"], ms=4)
            plotting.tidy(panel, title=f"{title} ({len(up)} rises)", xlabel="updates")


if __name__ == "__main__":
    execute(main, __doc__)
