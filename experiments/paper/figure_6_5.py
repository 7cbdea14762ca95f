"""Figure 6.5: scoping τ from 1.5 to 0.01, the reverse, and both constants, against SGD.

The paper sets the rate τ1 of scoping "so that the magnitude of the local entropy
gradient is roughly equivalent to that of SGD": at the last τ, |∇F_τ| ≈ |∇f|. Both norms
are measured here, at random weights and after SGD.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax

import lejax
from experiments.common import plotting, results, tables, training
from experiments.common.command import execute
from experiments.common.methods import Column, Method, Run, backpropagation
from experiments.common.options import Options
from experiments.common.study import dataset, fitted, study
from experiments.paper import tuning

LARGE, SMALL, RATE = 1.5, 0.01, 0.01  # the paper's τ0, its last τ, and τ1
SCHEDULES: dict[str, dict[str, Any]] = {
    "τ = 0.01": {"tau": (SMALL,)},
    "τ = 1.5": {"tau": (LARGE,)},
    "1.5 → 0.01": {"tau": (LARGE,), "scoping_rate": RATE},
    "0.01 → 1.5": {"tau": (SMALL,), "scoping_rate": 1 / (1 + RATE) - 1},
}
ROWS: dict[str, tuple[Method, Column]] = {
    "SGLD, as written": ("SGLD", "as written"),
    "SGLD, as published": ("SGLD", "as published"),
    "IS, lejax": ("IS", "lejax"),
}
TAUS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.5)


def gradient_ratios(options: Options, sgd_updates: int) -> list[float]:
    """|∇F_τ| / |∇f| on 200 training images, by τ.

    ∇F_τ = E_q ∇f (by parts), estimated from weighted gradients at draws of φ. The inner
    product of two independent estimates avoids the bias of a squared norm by noise.
    """
    run = fitted(Run("SGD", sgd_updates=sgd_updates), options)
    data = dataset(options.data, options.data_dir)
    params, network = training.classifiers(run, (0,), data)
    params = jax.tree.map(lambda leaf: leaf[0], params)
    tx = optax.chain(backpropagation(), optax.sgd(SMALL))
    images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    rows = training.batch_indices(0, len(labels), run.sgd_updates, run.batch_size)
    carry = params, tx.init(params)
    params, _ = training.descend(
        tx, network.loss, carry, jnp.asarray(rows), images, labels
    )
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def loss(x: jax.Array) -> jax.Array:
        return network.loss(unravel(x), (images[:200], labels[:200]))

    @jax.jit
    def smoothed(tau: jax.Array, key: jax.Array) -> jax.Array:
        def draw(key: jax.Array) -> Any:
            noise = jax.random.normal(key, flat.shape)
            return jax.value_and_grad(loss)(flat + jnp.sqrt(tau) * noise)

        keys = jax.random.split(key, 20 if options.quick else 200)
        losses, grads = jax.lax.map(draw, keys, batch_size=20)
        return jax.nn.softmax(-losses) @ grads

    plain = jnp.linalg.norm(jax.grad(loss)(flat))
    found = []
    for tau in TAUS:
        halves = [smoothed(jnp.asarray(tau), jax.random.key(i)) for i in (1, 2)]
        square = float(jnp.vdot(*halves))
        found.append(max(square, 0.0) ** 0.5 / float(plain))
    return found


def main(options: Options) -> None:
    """Measure the gradients, train, print, plot the curves above the schedules."""
    updates = options.updates or tuning.UPDATES
    runs = {"SGD": Run("SGD", updates=updates)}
    for row, (method, column) in ROWS.items():
        base = Run(method, column, updates=updates)
        for schedule, fields in SCHEDULES.items():
            runs[f"{row}, {schedule}"] = dataclasses.replace(base, **fields)
    found = study("figure_6_5", runs, options, seeds=2)
    print("\nFigure 6.5: test accuracy")
    table = tables.print_checkpoints(found)
    ratios = {
        f"after {n} SGD updates": gradient_ratios(options, n) for n in (0, updates)
    }
    print("|∇F_τ| / |∇f|, by τ: " + "  ".join(f"{tau:g}" for tau in TAUS))
    for when, row in ratios.items():
        print(f"    {when:<24}" + "  ".join(f"{ratio:.2f}" for ratio in row))
    end = float(lejax.scoping(LARGE, RATE)(updates))
    print(f"τ0 = {LARGE}, τ1 = {RATE}: τ({updates}) = {end:.4f}")
    results.add(
        options.output / "figure_6_5.json",
        table=table,
        taus=TAUS,
        gradient_ratios=ratios,
    )

    shades = mpl.colormaps["viridis"](np.linspace(0.85, 0.05, len(SCHEDULES)))
    with plotting.figure(
        options.output / "figure_6_5.png", 2, 3, height_ratios=(3, 1)
    ) as (_, axes):
        for panel, below, row in zip(axes[0], axes[1], ROWS, strict=True):
            sgd = found["SGD"]
            last = sgd.updates[-1]
            lines = [(sgd.updates, sgd.accuracy[0], "SGD", plotting.COLORS["SGD"])]
            for schedule, shade in zip(SCHEDULES, shades, strict=True):
                curves = found[f"{row}, {schedule}"]
                lines.append((curves.updates, curves.accuracy[0], schedule, shade))
                steps = np.arange(last + 1)
                tau = lejax.scoping(curves.run.tau[0], curves.run.scoping_rate)(steps)
                below.plot(steps, tau, color=shade, lw=2)
            plotting.named_curves(panel, lines, title=row)
            plotting.tidy(below, xlabel="updates", yscale="log", xlim=(0, last))
        axes[0, 0].set_ylabel("test accuracy")
        axes[1, 0].set_ylabel("τ")


if __name__ == "__main__":
    execute(main, __doc__)
