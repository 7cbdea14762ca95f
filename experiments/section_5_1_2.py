"""Section 5.1.2: the bias that minibatches bring to importance sampling.

The weights exp(-βf) are not linear in f, so the mean over batches of ∇F_batch is not
the ∇F of all images. Measured on the 784-10 network after 1000 steps of SGD.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from experiments import plotting, results, training
from experiments.methods import Run, backpropagation
from experiments.options import Options, parse
from experiments.study import dataset, fitted

BATCH_SIZES = (5, 20, 100, 500, 2500)
BETAS = (1.0, 20.0)  # f the mean over the batch, or the sum over the paper's 20 images
TAU = 0.01
GROUPS = 8


def correction(
    loss: Any, x: jax.Array, beta: float, samples: int, batch: tuple[Any, jax.Array]
) -> jax.Array:
    """∇F - ∇F^H = Σ_j (w_j - 1/J) ∇f(X_j) on one batch of example numbers.

    ∇F = E_q ∇f by parts; ∇F^H = E_φ ∇f is linear in f and has no bias, so that taking
    it off leaves the bias and takes off most of the noise.
    """
    rows, key = batch
    points = x + TAU**0.5 * jax.random.normal(key, (samples, x.size))
    losses, grads = jax.lax.map(
        lambda point: jax.value_and_grad(loss)(point, rows), points, batch_size=10
    )
    # Of J samples, a share 1/J of the covariance of weight and gradient is lost.
    weights = jax.nn.softmax(-beta * losses) - 1 / samples
    return samples / (samples - 1) * weights @ grads


def norm(groups: np.ndarray) -> tuple[float, float]:
    """Of the mean of independent estimates (groups, d), and its jackknife error.

    The square is taken between different groups, which leaves out that of the noise.
    """

    def of(some: np.ndarray) -> float:
        n = len(some)
        between = (some.sum(0) ** 2).sum() - (some**2).sum()
        return float(np.sqrt(max(between, 0.0) / (n * (n - 1))))

    left_out = [of(np.delete(groups, i, axis=0)) for i in range(len(groups))]
    return of(groups), float(np.std(left_out) * np.sqrt(len(groups) - 1))


def measure(options: Options) -> list[dict[str, float]]:
    """|mean over batches of ∇F_batch - ∇F| / |∇f|, by β and batch size."""
    run = fitted(Run("SGD", hidden=0, sgd_updates=1000), options)
    samples, size = (20, 400) if options.quick else (200, 10_000)
    data = dataset(options.data, options.data_dir)
    size = min(size, len(data.train_labels))
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

    def loss(x: jax.Array, rows: jax.Array) -> jax.Array:
        return network.loss(unravel(x), (images[rows], labels[rows]))

    plain = float(jnp.linalg.norm(jax.grad(loss)(x, jnp.arange(size))))

    def corrections(beta: float, batch_size: int) -> np.ndarray:
        """Means of the groups (GROUPS, d), over shuffled epochs of batches."""
        count = min(50, max(1, size // batch_size))
        batches = training.batch_indices(batch_size, size, GROUPS * count, batch_size)
        keys = jax.random.split(jax.random.key(batch_size), len(batches))
        one = functools.partial(correction, loss, x, beta, samples)
        each = jax.jit(functools.partial(jax.lax.map, one))(
            (jnp.asarray(batches), keys)
        )
        return np.asarray(each, float).reshape(GROUPS, count, -1).mean(1) / plain

    found = []
    for beta in BETAS:
        whole = corrections(beta, size)
        for batch_size in (b for b in BATCH_SIZES if b < size):
            bias, error = norm(corrections(beta, batch_size) - whole)
            found.append(
                {"beta": beta, "batch_size": batch_size, "bias": bias, "error": error}
            )
    return found


def main(options: Options) -> None:
    """Measure, print, plot."""
    path = options.output / "section_5_1_2.json"
    name = dataset(options.data, options.data_dir).name
    if (kept := results.kept(path, options, data=name)) is None:
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
    main(parse(__doc__))
