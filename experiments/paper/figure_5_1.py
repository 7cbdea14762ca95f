"""Figure 5.1: mode-seeking and mean-seeking Gaussian fits of a bimodal density."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import scipy.optimize

import lejax
from experiments.common import plotting, results
from experiments.common.command import execute
from experiments.common.options import Options
from experiments.common.quadrature import (
    POINTS,
    Loss,
    at_least,
    at_most,
    estimated,
    integrate,
    kl,
    log_gaussian,
    report,
    smooth,
)

# q ∝ exp(-f) N(X, TAU) is a mixture, because exp(-f) is a mixture of N(±4, 1).
X, TAU = 0.0, 1.5
SHARES = (0.37, 0.63)
CENTRES = (-4.0, 4.0)
MODES = tuple(TAU * centre / (1 + TAU) for centre in CENTRES)
STARTS = np.linspace(-5, 5, 11)


def _value(x: Any) -> Any:
    left, right = (
        float(np.log(share)) - (x - centre) ** 2 / 2
        for share, centre in zip(SHARES, CENTRES, strict=True)
    )
    return -x.__array_namespace__().logaddexp(left, right)


def _slope(x: Any) -> Any:
    log_odds = np.log(SHARES[1] / SHARES[0]) + x * (CENTRES[1] - CENTRES[0])
    return x - 4.0 * x.__array_namespace__().tanh(log_odds / 2)


LOSS = Loss(_value, _slope)


def log_density(x: Any) -> Any:
    """-log q up to a constant: its heat regularisation gives KL(φ ‖ q)."""
    return LOSS.value(x) + (x - X) ** 2 / (2 * TAU)


def local_minima(values: np.ndarray) -> np.ndarray:
    """The indices of the interior local minima."""
    inside = values[1:-1]
    return 1 + np.flatnonzero((inside < values[:-2]) & (inside < values[2:]))


def descend(starts: np.ndarray, steps: int = 400) -> np.ndarray:
    """Exact descent of KL(φ_y ‖ q) from many starts: y ← y - h(y)/4 of section 5.2."""
    y = starts
    for _ in range(steps):
        y = y - (y - X + TAU * smooth(LOSS, y, TAU).heat_gradient) / 4
    return y


def robbins_monro(key: jax.Array, start: jax.Array, steps: int = 300) -> jax.Array:
    """Algorithm 5 from any start: Robbins-Monro on the heat-regularised -log q."""
    tx = optax.chain(
        lejax.heat(lejax.pathwise(20), TAU, key=key),
        optax.sgd(lambda j: TAU * 2 / (8 + j)),
    )

    def move(carry: Any, _: None) -> Any:
        y, state = carry
        updates, state = tx.update(
            optax.tree.zeros_like(y), state, y, value_fn=log_density
        )
        return (optax.apply_updates(y, updates), state), None

    (y, _), _ = jax.lax.scan(move, (start, tx.init(start)), None, steps)
    return y


def fit_variance(log_q: np.ndarray, mean: float) -> tuple[float, float]:
    """Mean and variance of the mode-seeking fit near `mean`, with both free."""

    def objective(of: np.ndarray) -> float:
        return float(kl(log_gaussian(of[0], np.exp(of[1])), log_q))

    found = scipy.optimize.minimize(objective, [mean, 0.0], method="Nelder-Mead").x
    return float(found[0]), float(np.exp(found[1]))


def draw(options: Options, log_q: np.ndarray, mean: float, ends: np.ndarray) -> None:
    """Two panels as in the paper, with the starts that lead to either mode."""
    seen = np.abs(POINTS) <= 5.6
    x, q = POINTS[seen], np.exp(log_q[seen])
    green, black = plotting.COLORS["HR"], plotting.COLORS["IS"]

    def fit(ax: Any, centre: float, color: str, name: str) -> None:
        phi = np.exp(log_gaussian(centre, TAU)[seen])
        ax.plot(x, phi, color=color, lw=2.5)
        divergence = {
            green: kl(log_gaussian(centre, TAU), log_q),
            black: kl(log_q, log_gaussian(centre, TAU)),
        }[color]
        ax.annotate(
            f"{name} = {divergence:.2f}",
            (centre, phi.max() + 0.008), color=color, ha="center",
        )  # fmt: skip

    path = options.output / "figure_5_1.png"
    with plotting.figure(path, 1, 2, figsize=(11.5, 4.2), sharey=True) as (_, axes):
        for ax in axes.flat:
            ax.fill_between(x, q, color="0.85", lw=0)
            ax.annotate("q", (MODES[1] + 0.1, 0.17), color="0.4", size=15, ha="center")
            plotting.tidy(ax, xlabel="x", yticks=[], ylim=(-0.075, 0.36))
            ax.spines["left"].set_visible(False)
            ax.axhline(0, color="0.6", lw=0.8)
        left, right = axes[0]
        left.set_title("Mode-seeking: min KL(φ ‖ q), as for heat")
        right.set_title("Mean-seeking: min KL(q ‖ φ), as for local entropy")
        for centre in np.unique(ends.round(3)):
            fit(left, centre, green, "KL(φ ‖ q)")
        for start, end in zip(STARTS, ends, strict=True):
            left.annotate(
                "", (end, -0.004), (start, -0.045),
                arrowprops={"arrowstyle": "->", "color": green, "lw": 1},
            )  # fmt: skip
        left.annotate("starts", (-5.6, -0.07), color=green)
        fit(right, mean, black, "KL(q ‖ φ)")
        right.plot([mean, mean], [-0.03, 0], color=black, lw=1)
        right.annotate(
            "E$_q$ X, from every start", (mean, -0.035), ha="center", va="top"
        )


def main(options: Options) -> None:
    """Compute, check, draw and write both fits."""
    at = smooth(LOSS, X, TAU)
    grid, spacing = np.linspace(-5, 5, 1001, retstep=True)
    mode_seeking = kl(log_gaussian(grid, TAU), at.log_q)
    mean_seeking = kl(at.log_q, log_gaussian(grid, TAU))
    modes, means = local_minima(mode_seeking), local_minima(mean_seeking)
    closed_form = sum(s * m for s, m in zip(SHARES, MODES, strict=True))
    ends = descend(STARTS)
    nearest = np.abs(ends[:, None] - grid[modes]).min(1)
    q_at_mean = np.interp(at.mean, POINTS, np.exp(at.log_q))

    replicates = 16 if options.quick else 64
    step = lejax.step_fn(LOSS.value, lejax.importance(2000), TAU)
    sampled, sampled_error = estimated(
        lambda key, x: step(x, key), np.full(1, X), replicates=replicates
    )
    walked, walked_error = estimated(robbins_monro, STARTS, replicates=replicates)
    z = {
        "importance": float((sampled[0] - at.mean) / sampled_error[0]),
        "Robbins-Monro": ((walked - ends) / walked_error).tolist(),
    }
    draw(options, at.log_q, float(at.mean), ends)

    print(f"\nstart{'exact descent':>16}{'Robbins-Monro':>15}{'± s.e.':>9}{'z':>7}")
    for row in zip(STARTS, ends, walked, walked_error, z["Robbins-Monro"], strict=True):
        print("{:6.0f}{:15.4f}{:15.4f}{:9.4f}{:7.2f}".format(*row))
    print(f"E_q X: {at.mean:.4f}; importance sampling: {sampled[0]:.4f}")
    fits = {
        "mean-seeking": (
            float(at.mean),
            float(integrate(np.exp(at.log_q) * (POINTS - at.mean) ** 2)),
        ),
        **{
            f"mode-seeking near {grid[i]:.2f}": fit_variance(at.log_q, float(grid[i]))
            for i in modes
        },
    }
    print("Mean and variance, where the variance is fitted too (modes of q: 0.6):")
    for name, (mean, variance) in fits.items():
        print(f"  {name}: {mean:.2f}, {variance:.2f}")
    print()
    checks = [
        at_most("E_q X against its closed form", abs(at.mean - closed_form), 1e-9),
        at_most(
            "argmin of KL(q ‖ φ) on a grid against E_q X, in spacings",
            abs(grid[mean_seeking.argmin()] - at.mean) / spacing, 1,
        ),
        at_most("minima of KL(q ‖ φ): one", len(means), 1),
        at_least("minima of KL(φ ‖ q): more than one", len(modes), 2),
        at_most("q at the mean-seeking fit, to q's greatest value",
                q_at_mean / np.exp(at.log_q).max(), 0.1),
        at_most("mode-seeking fits from modes of q, in √τ",
                np.abs(grid[modes] - MODES).max() / np.sqrt(TAU), 0.25),
        at_most("ends of exact descents from minima of KL(φ ‖ q), in spacings",
                nearest.max() / spacing, 1),
        at_least("starts that end at the left mode", (ends < 0).sum(), 1),
        at_least("starts that end at the right mode", (ends > 0).sum(), 1),
        at_most("|z| of importance sampling's E_q X", abs(z["importance"]), 4),
        at_most("largest |z| of Robbins-Monro, over starts",
                np.abs(z["Robbins-Monro"]).max(), 4),
    ]  # fmt: skip
    results.write_json(
        options.output / "figure_5_1.json",
        options,
        checks=report(checks),
        tau=TAU,
        starts=STARTS.tolist(),
        mode_seeking={"ends": ends.tolist(), "robbins_monro": walked.tolist(),
                      "standard_error": walked_error.tolist(), "z": z["Robbins-Monro"]},
        mean_seeking={"mean": float(at.mean), "importance": float(sampled[0]),
                      "standard_error": float(sampled_error[0]), "z": z["importance"]},
        free_variance=fits,
    )  # fmt: skip


if __name__ == "__main__":
    execute(main, __doc__)
