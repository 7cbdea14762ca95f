"""The figures of the comparison: estimates with their uncertainty, and curves."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.applications.inverse import darcy, linear_gaussian, lorenz
from experiments.applications.inverse.methods import KALMAN, instance, problem_of
from experiments.common import plotting

COLORS = {
    "local entropy": "#2a78d6",
    "heat": "#17becf",
    "gaussian, diagonal": "#0b3d91",
    "gaussian, low rank": "#0b3d91",
    "gaussian, full": "#0b3d91",
    "CMA_ES": "#e67e22",
    "Sep_CMA_ES": "#9acd32",
    "LM_MA_ES": "#8e44ad",
    KALMAN: "#c8102e",
    "Adam, gradient": "0.5",
}
DASHES = {"gaussian, diagonal": ":", "gaussian, low rank": "--"}


def draw(config: Any, record: dict[str, Any]) -> None:
    """Pictures of the first instance above; f and errors of all instances below."""
    pictures = {
        "linear_gaussian": functions,
        "lorenz": densities,
        "darcy": maps,
    }[config.problem]
    of_maps = config.problem == "darcy"
    options = {"figsize": (14, 7.4 if of_maps else 8), "all_colors": of_maps}
    path = config.output / f"inverse_{config.problem}.png"
    with plotting.figure(path, 2, 5 if of_maps else 3, **options) as (whole, axes):
        pictures(axes[0], record["runs"])
        grid = axes[1][0].get_gridspec()
        for panel in axes[1]:
            panel.remove()
        below = grid[1, :].subgridspec(1, 2)
        curves([whole.add_subplot(below[i]) for i in range(2)], record)


def curves(panels: list[Any], record: dict[str, Any]) -> None:
    """f minus its reference, and the error of the field, against solves."""
    for name, runs in record["runs"].items():
        # Each run of an ensemble has its own points, between which it is constant.
        solves = np.unique(np.concatenate([of["solves"] for of in runs.values()]))
        solves = solves[solves > 1]  # an ensemble from its first update on
        solves = solves[solves >= max(of["solves"][0] for of in runs.values())]
        above, errors = [], []
        for seed, of in runs.items():
            at = np.searchsorted(of["solves"], solves, side="right") - 1
            above.append(np.array(of["losses"])[at] - record["references"][seed])
            errors.append(np.array(of["errors"])[at])
        line = {"color": COLORS[name], "ls": DASHES.get(name, "-"), "label": name}
        # A geometric mean, as the axis is logarithmic; f can be below its reference.
        panels[0].plot(solves, np.exp(np.log(np.maximum(above, 0.1)).mean(0)), **line)
        panels[1].plot(solves, np.mean(errors, 0), **line)
    for panel, label in zip(panels, ("f - f_ref", "relative error"), strict=True):
        panel.set_xscale("log")
        plotting.tidy(panel, xlabel="solves of the forward map", ylabel=label)
    panels[0].set_yscale("log")
    panels[1].set_ylim(0, 1.2)
    panels[0].legend(frameon=False, fontsize=9, ncols=2)


def functions(panels: Any, runs: dict[str, Any]) -> None:
    """The exact posterior, and two of the methods that estimate their uncertainty."""
    problem = problem_of("linear_gaussian")
    truth, y = instance("linear_gaussian", 0)
    assert problem.exact is not None
    mean, covariance = problem.exact(y)
    draws = np.random.default_rng(0).multivariate_normal(
        mean, covariance, 300, method="cholesky"
    )
    fields = np.stack([problem.field(jnp.asarray(u, jnp.float32)) for u in draws])
    exact = np.asarray(problem.field(jnp.asarray(mean, jnp.float32)))
    shown = {"posterior": (exact, fields.std(0))}
    for name in ("gaussian, low rank", KALMAN):
        of = runs[name]["0"]
        shown[name] = np.array(of["mean"]), np.array(of["deviation"])
    places = (np.arange(linear_gaussian.DIMENSIONS) + 0.5) / linear_gaussian.DIMENSIONS
    for panel, (name, (mean, deviation)) in zip(panels, shown.items(), strict=True):
        color = COLORS.get(name, "0.4")
        panel.fill_between(
            places, mean - 2 * deviation, mean + 2 * deviation, color=color, alpha=0.3
        )
        panel.plot(places, mean, color=color, lw=1, label="mean ± 2 deviations")
        panel.plot(places, problem.field(truth), color="k", lw=0.8, label="truth")
        plotting.tidy(panel, title=name, xlabel="place", ylim=(-1.5, 1.5))
    panels[0].legend(frameon=False, fontsize=9)


def densities(panels: Any, runs: dict[str, Any]) -> None:
    """The density of each parameter, by mean and deviation of its logarithm."""
    for i, (panel, name) in enumerate(zip(panels, ("σ", "r", "b"), strict=True)):
        true = lorenz.TRUTH[i]
        x = np.linspace(0.7 * true, 1.3 * true, 400)
        for method in ("gaussian, full", KALMAN):
            of = runs[method]["0"]
            spread = of["deviation"][i] / of["mean"][i]
            z = np.log(x / of["mean"][i]) / spread
            density = np.exp(-(z**2) / 2) / (x * spread * np.sqrt(2 * np.pi))
            panel.plot(x, density, color=COLORS[method], label=method)
        for method in ("local entropy", "CMA_ES", "Adam, gradient"):
            panel.axvline(
                runs[method]["0"]["mean"][i],
                color=COLORS[method],
                ls="--",
                label=method,
            )
        panel.axvline(true, color="k", lw=1, label="truth")
        plotting.tidy(panel, title=name, yticks=[], xlim=(x[0], x[-1]))
    panels[0].legend(frameon=False, fontsize=9)


def maps(panels: Any, runs: dict[str, Any]) -> None:
    """The logarithm of the permeability and its deviation, each on one colour scale."""
    problem, cells = problem_of("darcy"), (darcy.CELLS, darcy.CELLS)
    truth, _ = instance("darcy", 0)
    shown = [("truth", problem.field(truth), False)]
    for name in ("gaussian, low rank", KALMAN):
        shown.append((name, runs[name]["0"]["mean"], False))
        shown.append(("its deviation", runs[name]["0"]["deviation"], True))
    limit = float(np.abs(problem.field(truth)).max())
    places = (darcy.CELLS // darcy.PLACES) * (0.5 + np.arange(darcy.PLACES)) - 0.5
    for panel, (name, values, spread) in zip(panels, shown, strict=True):
        image = panel.imshow(
            np.reshape(values, cells).T,
            origin="lower",
            cmap="viridis" if spread else "RdBu_r",
            vmin=0 if spread else -limit,
            vmax=0.5 if spread else limit,
        )
        panel.set(title=name, xticks=[], yticks=[])
        panel.figure.colorbar(image, ax=panel, orientation="horizontal", shrink=0.8)
    panels[0].plot(*(g.ravel() for g in np.meshgrid(places, places)), "k.", ms=2)
