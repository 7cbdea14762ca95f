"""τ by a controller, from distant starts, against every fixed τ of a grid.

The network has 7,850 parameters. Importance sampling is as in Figure 6.4, with all test
images. Section 6.5 of the paper calls for a heuristic to tune τ. Here it is
`lejax.target_share`, which follows a constant or rising share of effective samples. The
share and the gain are chosen on the validation split, for both starts together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import plotting, results
from experiments.common.command import execute
from experiments.common.methods import Controlled, Run
from experiments.common.options import Options
from experiments.common.study import Curves, study
from experiments.paper.figure_6_4 import RANGES
from experiments.paper.tuning import HELD_OUT

TAUS = (*sorted({tau for taus in RANGES.values() for tau in taus}), 2.0, 4.0, 7.0, 10.0)
# The share at the start and at the end; it changes linearly.
SHARES = {
    "constant": ((0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (0.5, 0.5)),
    "rising": ((0.1, 0.5), (0.1, 0.7), (0.1, 0.9), (0.2, 0.9)),
}
GAINS = (0.1, 0.3)
# Two decades below and above the best fixed τ, in Figure 6.4 and here.
STARTS = (0.01, 100.0)
SEEDS = 5

FIXED = "fixed τ"


def choose(run: Run, options: Options) -> tuple[dict[str, Controlled], dict[str, Any]]:
    """The controllers that are best on the validation split, and the results of all."""
    run = dataclasses.replace(run, **HELD_OUT)
    of_run: dict[str, Any] = vars(run) | {"tau": STARTS}
    candidates = {
        kind: {
            f"share {share[0]:g} to {share[1]:g}, gain {gain:g}": Controlled(
                **of_run, share=share, gain=gain
            )
            for share in shares
            for gain in GAINS
        }
        for kind, shares in SHARES.items()
    }
    runs: dict[str, Run] = {FIXED: run}
    for of_kind in candidates.values():
        runs |= of_kind
    # The choice does not depend on the number of seeds of the study.
    options = dataclasses.replace(options, seeds=None)
    found = study("control_tuning", runs, options, SEEDS)
    of_fixed = ends(found[FIXED]).mean(1)
    best = run.tau[int(of_fixed.argmax())]
    print("\nValidation accuracy, from below and from above")
    print(f"  {FIXED} = {best:g} {of_fixed.max():.4f}")
    chosen, accuracy, names = {}, {}, {}
    for kind, of_kind in candidates.items():
        of_kind_found = {label: ends(found[label]).mean(1) for label in of_kind}
        accuracy |= of_kind_found
        names[kind] = max(of_kind, key=lambda label: accuracy[label].mean())
        chosen[kind] = of_kind[names[kind]]
        for name, (below, above) in of_kind_found.items():
            mark = "  chosen" if name == names[kind] else ""
            print(f"  {name:<28}{below:.4f}  {above:.4f}{mark}")
    return chosen, {
        "best_fixed_tau": best,
        "accuracy_of_fixed": of_fixed.round(4).tolist(),
        "accuracy": {label: of.round(4).tolist() for label, of in accuracy.items()},
        "chosen": names,
    }


def ends(curves: Curves) -> np.ndarray:
    """The accuracy after the last update, (grid, seeds)."""
    return curves.accuracy[:, :, -1]


def compared(found: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """A row for each τ and each start, with the paired difference to the best τ."""
    fixed = ends(found[FIXED])
    best = fixed[fixed.mean(1).argmax()]
    rows = []
    for kind, curves in found.items():
        for tau, accuracy in zip(curves.run.tau, ends(curves), strict=True):
            (mean, width), (gap, of_gap) = map(
                plotting.interval, (accuracy, accuracy - best)
            )
            row = {
                "mean": mean,
                "half_width": width,
                "difference": gap,
                "difference_half_width": of_gap,
            }
            rounded = {k: round(float(np.nan_to_num(v)), 4) for k, v in row.items()}
            rows.append({"kind": kind, "tau": tau} | rounded)
    return rows


def draw(options: Options, found: Mapping[str, Curves]) -> None:
    """Final accuracies by τ, the curves, and τ along the runs."""
    fixed, black = found[FIXED], "#111111"
    best = int(ends(fixed).mean(1).argmax())
    last = fixed.updates[-1]
    path = options.output / "control.png"
    with plotting.figure(path, 1, 3, figsize=(18, 4.6)) as (_, axes):
        by_tau, by_update, tau_panel = axes[0]
        mean, width = plotting.interval(ends(fixed).T)
        by_tau.errorbar(fixed.run.tau, mean, width, color=black, marker="o", ms=4)
        mean = plotting.curve(by_update, fixed.updates, fixed.accuracy[best], black)
        names = [(mean[-1], f"fixed {fixed.run.tau[best]:g}: {mean[-1]:.3f}", black)]
        tau_panel.axhline(fixed.run.tau[best], color=black, lw=2)
        of_tau = [(fixed.run.tau[best], "fixed", black)]
        for kind, color in (("constant", "#c8102e"), ("rising", "#2a78d6")):
            curves = found[kind]
            assert curves.tau is not None
            mean, width = plotting.interval(ends(curves).T)
            by_tau.errorbar(
                curves.run.tau, mean, width, color=color, marker="s", ls="", label=kind
            )
            for accuracy, taus, start in zip(
                curves.accuracy, curves.tau, curves.run.tau, strict=True
            ):
                mean = plotting.curve(by_update, curves.updates, accuracy, color)
                names.append((mean[-1], f"{kind}, {start:g}: {mean[-1]:.3f}", color))
                tau_panel.plot(curves.updates[1:], taus.T, color=color, lw=1)
            of_tau.append((np.exp(np.log(curves.tau[..., -1]).mean()), kind, color))
        plotting.tidy(
            by_tau,
            title="accuracy at the end",
            xscale="log",
            xlabel="τ; where a controller started",
            ylabel="test accuracy",
            ylim=(0.8, 0.9),
        )
        by_tau.legend(title="controller, share", loc="lower center", frameon=False)
        plotting.tidy(
            by_update,
            title="accuracy",
            xlabel="updates",
            ylim=(0.7, 0.9),
            xlim=(0, last),
        )
        low, high = by_update.get_ylim()
        plotting.label_ends(
            by_update,
            [
                (float(np.clip(end, low, high)), name, color)
                for end, name, color in names
            ],
            last,
        )
        plotting.tidy(
            tau_panel,
            title="τ, of each seed",
            xlabel="updates",
            yscale="log",
            xlim=(0, last),
        )
        tau_panel.yaxis.set_major_formatter("{x:g}")
        tau_panel.yaxis.set_minor_formatter("{x:g}")
        for tau, name, color in of_tau:
            tau_panel.annotate(
                f" {name}", (last, tau), color=color, va="center", annotation_clip=False
            )


def main(options: Options) -> None:
    """Choose, train, compare."""
    run = Run(
        "IS",
        "lejax",
        tau=TAUS,
        hidden=0,
        updates=options.updates or 300,
        test_images=10_000,
    )
    controllers, record = choose(run, options)
    # Now on the whole training set.
    whole = {field: getattr(run, field) for field in HELD_OUT}
    runs = {FIXED: run} | {
        kind: dataclasses.replace(controller, **whole)
        for kind, controller in controllers.items()
    }
    found = study("control", runs, options, SEEDS)
    rows = compared(found)
    print(
        f"\nTest accuracy after {run.updates} updates; difference to the best τ, paired"
    )
    for row in rows:
        print(
            "  {kind:<10}{tau:<8g}{mean:.4f} ±{half_width:.4f}   "
            "{difference:+.4f} ±{difference_half_width:.4f}".format(**row)
        )
    results.add(options.output / "control.json", choice=record, table=rows)
    draw(options, found)


if __name__ == "__main__":
    execute(main, __doc__)
