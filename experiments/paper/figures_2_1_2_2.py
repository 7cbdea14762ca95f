"""Figures 2.1 and 2.2: a sharp and a wide well under local entropy and under heat."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import lejax
from experiments.common import plotting, results
from experiments.common.command import execute
from experiments.common.options import Options
from experiments.common.quadrature import Check, at_least, at_most, estimated, report
from experiments.paper.wells import (
    POINTS,
    REGULARISATIONS,
    WELLS,
    Regularisation,
    exact,
    loss,
    minimum,
    on_grid,
    surface,
)

TAUS = (0.001, 0.01, 0.05, 0.2, 0.8, 3.0)
SHOWN = (0.01, 0.05, 0.2, 0.8)
ELSEWHERE = ((-0.3, 0.0), (1.2, 0.8), (-1.3, 0.2), (-1.0, 1.8))


class Sampled(NamedTuple):
    """F and its gradient by a sampler, at points with exact values, (τ, point, 3)."""

    mean: np.ndarray
    standard_error: np.ndarray
    z: np.ndarray


def sampled(
    reg: Regularisation, g: np.ndarray, samples: int, replicates: int
) -> dict[str, Sampled]:
    """Estimates of every sampler at TAUS, at both wells' minima and at ELSEWHERE."""
    minima = [
        [minimum(reg, g, well, tau).at for well in WELLS.values()] for tau in TAUS
    ]
    at = np.array([[*row, *ELSEWHERE] for row in minima])
    tau = np.broadcast_to(np.array(TAUS)[:, None], at.shape[:2])
    truth = np.stack([exact(reg, g, *row) for row in zip(at, TAUS, strict=True)])
    found = {}

    def one(sampler: lejax.Sampler, key: Any, x: Any, tau: Any) -> Any:
        (value, _), grad = lejax.value_and_grad(loss, sampler, tau)(x, key)
        return jnp.concatenate([value[None], grad])

    for name, factory in reg.samplers.items():
        of_sampler = functools.partial(one, factory(samples))
        flat = estimated(
            of_sampler, at.reshape(-1, 2), tau.ravel(), replicates=replicates
        )
        mean, error = (of.reshape(truth.shape) for of in flat)
        found[name] = Sampled(mean, error, (mean - truth) / error)
    return found


class Trace(NamedTuple):
    """The wells as τ grows.

    Attributes:
        depth: the depth of each well, (T,).
        ratio: the depth of the wide well by that of the sharp one, as long as the sharp
            well is a minimum.
        lost: the τ from which the sharp well is no minimum.
        order: the τ from which the wide well is deeper.
        kept: the τ up to which the ratio is that of the loss, to 10 %.
        drift: the largest distance of the wide well's minimum from its centre, at τ for
            which the ripples are gone.
    """

    depth: dict[str, np.ndarray]
    ratio: np.ndarray
    lost: float
    order: float
    kept: float
    drift: float


def trace(reg: Regularisation, g: np.ndarray, taus: np.ndarray) -> Trace:
    """Follow both wells along τ, by quadrature."""
    minima = {
        name: [minimum(reg, g, well, tau) for tau in taus]
        for name, well in WELLS.items()
    }
    depth = {name: np.array([m.depth for m in of]) for name, of in minima.items()}
    lost = int(np.argmin([m.inside for m in minima["sharp"]]))
    ratio = depth["wide"][:lost] / depth["sharp"][:lost]

    def reached(level: float) -> float:
        return float(np.exp(np.interp(level, ratio, np.log(taus[:lost]))))

    drifts = [
        float(np.linalg.norm(m.at - WELLS["wide"].centre))
        for m, tau in zip(minima["wide"], taus, strict=True)
        if 0.03 <= tau <= 1
    ]
    loss_ratio = minimum(reg, g, WELLS["wide"], 0).depth
    loss_ratio /= minimum(reg, g, WELLS["sharp"], 0).depth
    return Trace(
        depth, ratio, float(taus[lost]), reached(1.0), reached(1.1 * loss_ratio),
        max(drifts),
    )  # fmt: skip


def draw(
    path: Path, name: str, g: np.ndarray, taus: np.ndarray, found: Trace, by: Any
) -> None:
    """The loss and its smoothings on one scale, and the depths against τ."""
    reg = REGULARISATIONS[name]
    x, y = np.linspace(-2.4, 2.4, 193), np.linspace(-1.7, 1.7, 137)
    with plotting.figure(path, 2, 3, figsize=(13, 7)) as (_, axes):
        for ax, tau in zip(axes.flat, (0.0, *SHOWN), strict=False):
            levels = np.linspace(-5.1, 0.3, 28)
            values = surface(reg, g, x, y, tau).T
            ax.contourf(x, y, values, levels, cmap="cividis", extend="both")
            title = f"{name}, τ = {tau:g}" if tau else "the loss, and depths of wells"
            ax.set(title=title, xticks=[], yticks=[])
            for label, well in WELLS.items():
                _, depth, inside = minimum(reg, g, well, tau)
                above = well.centre[1] + 0.4 + well.width / 2
                text = f"{label} {depth:.1f}" if inside else f"{label} gone"
                ax.annotate(text, (well.centre[0], above), ha="center")
        ax = axes[1, 2]
        for i, (label, style) in enumerate((("sharp", "--"), ("wide", "-"))):
            until = found.lost if label == "sharp" else np.inf
            ax.plot(
                taus[taus < until], found.depth[label][taus < until], style,
                color=reg.color, lw=2,
            )  # fmt: skip
            above = found.depth[label][0] + 0.15
            ax.annotate(label, (taus[0] * 1.2, above), color=reg.color)
            for marker, of in zip(("o", "x"), by.values(), strict=False):
                kept = np.array(TAUS) < until
                ax.plot(
                    np.array(TAUS)[kept], -of.mean[kept, i, 0], marker,
                    color=reg.color, ms=9, mfc="none", mew=1.5,
                )  # fmt: skip
        plotting.tidy(
            ax, xscale="log", xlabel="τ", ylim=(0, 5.5), title="depth of the wells"
        )
        notes = {
            found.order: f"τ = {found.order:.2f}\nwide is\ndeeper",
            found.lost: f"τ = {found.lost:.1f}\nsharp\nis gone",
        }
        for (at, text), height in zip(notes.items(), (4.1, 3.2), strict=True):
            ax.axvline(at, color="0.75", lw=1)
            ax.annotate(text, (at * 1.15, height), color="0.35")
        key = [f"{m} {of}" for m, of in zip(("○", "×"), by, strict=False)]
        ax.annotate(
            "\n".join(["lines: quadrature", *key]), (taus[0], 0.15), color="0.35"
        )


def checks(traces: dict[str, Trace], by: dict[str, dict[str, Sampled]]) -> list[Check]:
    """The claims of the figures, with their bounds."""
    deepest = -float(on_grid(POINTS, POINTS).min())
    found = [
        at_most(f"largest |z| of F and its gradient, {sampler} against quadrature",
                np.abs(of.z).max(), 4)
        for samplers in by.values() for sampler, of in samplers.items()
    ]  # fmt: skip
    for name, of in traces.items():
        found += [
            at_least(f"{name}: least rise with τ of the ratio of depths, wide to sharp",
                     np.diff(of.ratio).min(), 0),
            at_most(f"{name}: greatest depth at any τ, against that of the loss",
                    max(d.max() for d in of.depth.values()), deepest),
            at_most(f"{name}: τ beyond which the wide well is deeper", of.order, 0.1),
            at_most(f"{name}: τ at which the sharp well is gone", of.lost, 1),
            at_most(f"{name}: drift of the wide minimum, 0.03 ≤ τ ≤ 1, in its widths",
                    of.drift / WELLS["wide"].width, 0.1),
        ]  # fmt: skip
    entropy, heat = traces["local entropy"], traces["heat"]
    ratio = (heat.depth["sharp"] / entropy.depth["sharp"]).max()
    return [
        *found,
        at_most(
            "the sharp well's depth, heat to local entropy, greatest ratio", ratio, 1
        ),
    ]


def findings(traces: dict[str, Trace]) -> list[str]:
    """Which of the paper's statements on Figures 2.1 and 2.2 hold, and which do not."""
    entropy, heat = traces["local entropy"], traces["heat"]
    return [
        "local entropy deepens wide minima relative to sharp ones, as the paper says; "
        "in absolute terms nothing deepens, for F ≥ min f.",
        "heat keeps the place of the wide minimum, but relative depths only while τ is "
        f"small against the squared width {WELLS['sharp'].width ** 2:.2g} of the sharp "
        f"well: to 10 % up to τ = {heat.kept:.2g} (local entropy: {entropy.kept:.2g}).",
        "the paper's contrast, that heat modifies relative depths marginally, is not "
        f"seen at equal τ: heat reverses their order from τ = {heat.order:.2g}, local "
        f"entropy from {entropy.order:.2g} only. F ≤ F^H, by Var_φ f/2 at first: local "
        "entropy keeps a sharp deep well for longer.",
    ]


def main(options: Options) -> None:
    """Compute, check, draw and write both figures."""
    taus = np.geomspace(0.001, 3, 13 if options.quick else 41)
    traces, by = {}, {}
    for name, reg in REGULARISATIONS.items():
        g = reg.start(on_grid(POINTS, POINTS))
        traces[name] = trace(reg, g, taus)
        by[name] = sampled(reg, g, *((1000, 32) if options.quick else (4000, 64)))
        draw(options.output / reg.file, name, g, taus, traces[name], by[name])
        print(f"\n{name}: depths of the sharp and the wide well, ± standard errors")
        for i, tau in enumerate(TAUS):
            wells = [minimum(reg, g, well, tau).depth for well in WELLS.values()]
            print(
                f"τ = {tau:<6g} quadrature     {wells[0]:.3f}          {wells[1]:.3f}"
            )
            for sampler, of in by[name].items():
                cells = zip(
                    -of.mean[i, :2, 0], of.standard_error[i, :2, 0], strict=True
                )
                row = "  ".join(f"{depth:.3f} ± {error:.4f}" for depth, error in cells)
                print(f"{'':11}{sampler:14} {row}")
    print()
    found = report(checks(traces, by))
    for finding in findings(traces):
        print(f"Finding: {finding}")

    def lists(of: Any) -> Any:
        if isinstance(of, dict):
            return {name: lists(value) for name, value in of.items()}
        return of.tolist() if isinstance(of, np.ndarray) else of

    results.write_json(
        options.output / "figures_2_1_2_2.json",
        options,
        checks=found,
        findings=findings(traces),
        wells={name: well._asdict() for name, well in WELLS.items()},
        traces={
            n: {"tau": taus.tolist(), **lists(t._asdict())} for n, t in traces.items()
        },
        sampled={
            "tau": TAUS,
            "points": ["sharp minimum", "wide minimum", *ELSEWHERE],
            **{
                n: lists({s: of._asdict() for s, of in b.items()})
                for n, b in by.items()
            },
        },
    )


if __name__ == "__main__":
    execute(main, __doc__)
