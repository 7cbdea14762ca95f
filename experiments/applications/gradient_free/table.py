"""The tables and the figures of the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common import plotting

STYLES = {
    "importance": ("#2a78d6", "-"),
    "importance, no credit": ("#2a78d6", "--"),
    "importance, direct": ("#2a78d6", ":"),
    "importance, ranks": ("#2a78d6", "-."),
    "gaussian, diagonal": ("#0b3d91", "-"),
    "gaussian, full": ("#0b3d91", "--"),
    "gaussian, diagonal, straight through": ("#0b3d91", "-."),
    "score_function": ("#17becf", "-"),
    "importance, straight through": ("#1f3b99", "-"),
    "importance, direct, straight through": ("#1f3b99", ":"),
    "score_function, straight through": ("#0b7285", "-"),
    "OpenES": ("#c8102e", "-"),
    "OpenES, straight through": ("#c8102e", "--"),
    "PGPE": ("#e67e22", "-"),
    "SNES": ("#3c9d4e", "-"),
    "SNES, straight through": ("#3c9d4e", "--"),
    "Sep_CMA_ES": ("#9acd32", "-"),
    "LM_MA_ES": ("#8e44ad", "-"),
    "SPSA": ("#a0522d", "-"),
    "gradient": ("0.5", "-"),
}


class Curves(NamedTuple):
    """The runs of one search.

    Attributes:
        evaluations: the evaluations up to each point.
        seconds: the seconds up to each point.
        scores: (seeds, points).
        level: the score to be reached.
    """

    evaluations: np.ndarray
    seconds: np.ndarray
    scores: np.ndarray
    level: float

    def at(self, spent: np.ndarray, budget: float) -> np.ndarray:
        """The scores of all seeds at the end of a budget, a point up to rounding."""
        return self.scores[:, np.abs(spent - budget).argmin()]

    def until_level(self, spent: np.ndarray) -> np.ndarray:
        """What every seed spent up to the first point at the level; inf if none."""
        reached = self.scores >= self.level
        first = np.where(reached.any(1), reached.argmax(1), -1)
        return np.where(reached.any(1), spent[first], np.inf)


def curves(
    runs: Mapping[str, Any], seconds: Mapping[str, float], level: float
) -> dict[str, Curves]:
    """The runs of all searches on a problem, from the file."""
    found = {}
    for name in (name for name in STYLES if name in runs):
        of_name = runs[name]
        updates = np.asarray(of_name["updates"])
        found[name] = Curves(
            updates * of_name["evaluations_per_update"],
            updates * seconds[name],
            np.asarray([of_name["scores"][s] for s in sorted(of_name["scores"])]),
            level,
        )
    return found


def until(samples: np.ndarray, last: float) -> str:
    """The cost of reaching the level, or the number of seeds that reached it."""
    reached = np.isfinite(samples)
    if not reached.any():
        return f"more than {_short(last)}"
    if not reached.all():
        return f"{reached.sum()} of {len(samples)} within {_short(last)}"
    mean, width = (float(x) for x in plotting.interval(samples))
    # Equal numbers differ from their mean by rounding.
    return f"{_short(mean)} ± {_short(0 if width < 1e-9 * mean else width)}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def table(found: Mapping[str, Curves], evaluations: int, seconds: float) -> str:
    """Scores at both budgets, and the cost of the level, in Markdown."""
    lines = [
        [
            "search",
            f"at {evaluations:,} evaluations",
            f"at {seconds:g} s",
            "evaluations to the level",
            "seconds",
        ]
    ]
    lines.append(["---"] * len(lines[0]))
    for name, of in found.items():
        lines.append(
            [
                name,
                plotting.shown(of.at(of.evaluations, evaluations), 3),
                plotting.shown(of.at(of.seconds, seconds), 3),
                until(of.until_level(of.evaluations), of.evaluations[-1]),
                until(of.until_level(of.seconds), of.seconds[-1]),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(
    path: Path,
    problems: Mapping[tuple[str, str], Mapping[str, Curves]],
    evaluations: int,
    seconds: float,
) -> None:
    """Scores against evaluations and seconds, a row for each (problem, measure)."""
    size = (12.5, 3.4 * len(problems) + 0.8)
    budgets = {"evaluations": evaluations, "seconds": seconds}
    with plotting.figure(path, len(problems), 2, figsize=size) as (whole, axes):
        for row, ((name, measure), found) in zip(axes, problems.items(), strict=True):
            for panel, (spent, budget) in zip(row, budgets.items(), strict=True):
                for searcher, of in found.items():
                    color, ls = STYLES[searcher]
                    x = getattr(of, spent)[1:]
                    plotting.curve(panel, x, of.scores[:, 1:], color, ls, lw=1.6)
                panel.axhline(next(iter(found.values())).level, color="0.7", lw=0.8)
                panel.axvline(budget, color="0.7", lw=0.8)
                panel.set_xscale("log")
                plotting.tidy(
                    panel, title=name, xlabel=spent, ylabel=measure, ylim=(0, 1)
                )
        names = list(next(iter(problems.values())))
        lines = axes[0][0].get_lines()[: len(names)]
        whole.legend(lines, names, loc="outside lower center", ncols=6, fontsize=9)
