"""Section 5.1.2: the bias of importance sampling by minibatches.

The weights exp(-βf) are not linear in f, so the mean over batches of ∇F_batch differs
from ∇F of all images. Measured on the 784-10 network after 1000 steps of SGD.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import hosts, plotting, results, training
from experiments.common.command import execute
from experiments.common.methods import Run, backpropagation
from experiments.common.options import Options
from experiments.common.study import dataset, fitted

BATCH_SIZES = (5, 20, 100, 500, 2500)
BETAS = (1.0, 20.0)  # f is the mean over the batch, or the sum over 20 images
SETTINGS = [(beta, size) for beta in BETAS for size in BATCH_SIZES]
TAU = 0.01
GROUPS = 8


def excess(
    logits: Any, labels: jax.Array, x: jax.Array, samples: int, key: jax.Array
) -> list[jax.Array]:
    """Mean over the batches of a shuffled epoch of ∇F_batch, less ∇F of all images.

    Both are importance estimates, for each of SETTINGS with batches smaller than all
    images. By parts ∇F = E_q ∇f, estimated by Σ_j w_j ∇f(X_j). The X_j are the same for
    all batches and for all images, so that only the weights differ.
    """
    noise_key, order_key = jax.random.split(key)
    keys, count = jax.random.split(noise_key, samples), len(labels)
    order = jax.random.permutation(order_key, count)
    smaller = [(beta, size) for beta, size in SETTINGS if size < count]

    def at(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        point = x + TAU**0.5 * jax.random.normal(key, x.shape)
        losses, pullback = jax.vjp(
            lambda z: optax.softmax_cross_entropy_with_integer_labels(z, labels),
            logits(point),
        )
        return losses[order], pullback(jnp.ones_like(losses))[0][order]

    losses = jax.lax.map(lambda key: at(key)[0], keys)

    def weights(beta: float, size: int) -> jax.Array:
        means = losses.reshape(samples, -1, size).mean(-1)
        return jax.nn.softmax(-beta * means, axis=0)

    weigh = [weights(beta, size) - weights(beta, count) for beta, size in smaller]

    def add(sums: list[jax.Array], one: Any) -> tuple[list[jax.Array], None]:
        key, of_batches = one
        slopes = at(key)[1]
        return [
            total + jnp.repeat(weight, count // len(weight))[:, None] * slopes
            for total, weight in zip(sums, of_batches, strict=True)
        ], None

    zeros = [jnp.zeros((count, logits(x).shape[1]))] * len(smaller)
    sums, _ = jax.lax.scan(add, zeros, (keys, weigh))
    # Without a hidden layer the logits are linear in x: one pull-back is enough.
    back = jnp.argsort(order)
    _, pullback = jax.vjp(logits, x)
    return [pullback(total[back] / count)[0] for total in sums]


def norm(groups: np.ndarray) -> tuple[float, float]:
    """Norm of the mean of independent estimates (groups, d), and its jackknife error.

    The squared norm uses products of different groups only, so noise adds no bias.
    """

    def of(some: np.ndarray) -> float:
        n = len(some)
        between = (some.sum(0) ** 2).sum() - (some**2).sum()
        return float(np.sqrt(max(between, 0.0) / (n * (n - 1))))

    left_out = [of(np.delete(groups, i, axis=0)) for i in range(len(groups))]
    return of(groups), float(np.std(left_out) * np.sqrt(len(groups) - 1))


def measure(options: Options) -> list[dict[str, float]]:
    """|mean over batches of ∇F_batch - ∇F| / |∇f|, by β and batch size."""
    run = fitted(Run("IS", hidden=0, sgd_updates=1000), options)
    data = dataset(options.data, options.data_dir)
    size = 400 if options.quick else min(10_000, len(data.train_labels) // 1000 * 1000)
    images = jnp.asarray(data.train_images[:size])
    labels = jnp.asarray(data.train_labels[:size])
    params, network = training.classifiers(run, (0,), data)
    params = jax.tree.map(lambda leaf: leaf[0], params)
    tx = optax.chain(backpropagation(), optax.sgd(TAU))
    rows = training.batch_indices(0, size, run.sgd_updates, run.batch_size)
    params, _ = training.descend(
        tx, network.loss, (params, tx.init(params)), jnp.asarray(rows), images, labels
    )
    x, unravel = jax.flatten_util.ravel_pytree(params)
    plain = jax.grad(lambda x: network.loss(unravel(x), (images, labels)))(x)

    def logits(x: jax.Array) -> jax.Array:
        return network.logits(unravel(x), images)

    one = jax.jit(functools.partial(excess, logits, labels, x, run.samples))
    groups = [one(key) for key in jax.random.split(jax.random.key(0), GROUPS)]
    found = []
    for i, (beta, batch_size) in enumerate(s for s in SETTINGS if s[1] < size):
        of_groups = np.stack([np.asarray(group[i], float) for group in groups])
        bias, error = norm(of_groups / float(jnp.linalg.norm(plain)))
        found.append(
            {"beta": beta, "batch_size": batch_size, "bias": bias, "error": error}
        )
    return found


def main(options: Options) -> None:
    """Measure, print, plot."""
    path = options.output / "section_5_1_2.json"
    name = dataset(options.data, options.data_dir).name
    if (kept := hosts.of_first(results.kept(path, options, data=name))) is None:
        kept = {"bias": measure(options)}
        results.write_json(path, options, data=name, **kept)
    print("\nSection 5.1.2: bias of ∇F by minibatches, in shares of |∇f|")
    for row in kept["bias"]:
        print(
            f"    β = {row['beta']:<5g} batches of {row['batch_size']:<6}"
            f"{row['bias']:.5f} ± {row['error']:.5f}"
        )
    with plotting.figure(options.output / "section_5_1_2.png", figsize=(7.5, 4.4)) as (
        _,
        axes,
    ):
        panel = axes[0, 0]
        for beta, color in zip(BETAS, ("#2a78d6", "#111111"), strict=True):
            rows = [row for row in kept["bias"] if row["beta"] == beta]
            sizes = np.array([row["batch_size"] for row in rows])
            bias = np.array([row["bias"] for row in rows])
            error = [2 * row["error"] for row in rows]
            panel.errorbar(sizes, bias, error, color=color, marker="o", capsize=3)
            panel.plot(sizes, bias[0] * sizes[0] / sizes, ":", color=color, lw=1)
            panel.annotate(f"  β = {beta:g}", (sizes[0], bias[0]), color=color)
        panel.set(xscale="log", yscale="log")
        plotting.tidy(
            panel,
            xlabel="batch size (dotted: proportional to its inverse)",
            ylabel="bias of ∇F / |∇f|",
            title="What minibatches add to importance sampling",
        )


if __name__ == "__main__":
    execute(main, __doc__)
