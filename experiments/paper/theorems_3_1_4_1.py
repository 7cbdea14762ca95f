"""Theorems 3.1 and 4.1: both sides, and which density attains the minimum."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize

from experiments.common import plotting, results
from experiments.common.command import execute
from experiments.common.options import Options
from experiments.common.quadrature import (
    LOSSES,
    POINTS,
    Check,
    Loss,
    Smoothing,
    at_least,
    at_most,
    integrate,
    kl,
    log_gaussian,
    log_integrate,
    normalised,
    report,
    smooth,
)

FINDING = (
    "the density that attains the minimum in (4.1) is that of (2.6), with exp(-f), as "
    "the paper says: the exp(+f) that the bracket suggests is undone by φ on the left "
    "of KL(φ ‖ q)."
)
TAUS = (0.3, 1.5)
CENTRES = (-2.0, 0.4, 1.3)
_POSITIVE = np.concatenate([[0.01, 0.03], np.linspace(0.1, 1, 10)])
SIZES = np.concatenate([-_POSITIVE[::-1], _POSITIVE])


def bracket_3_1(f: np.ndarray, at: Smoothing, log_q: np.ndarray) -> np.ndarray:
    """The objective of (3.1), a function of q: E_q f + KL(q ‖ φ)."""
    return integrate(np.exp(log_q) * f) + kl(log_q, at.log_phi)


def bracket_4_1(f: np.ndarray, at: Smoothing, log_q: np.ndarray) -> np.ndarray:
    """The objective of (4.1), a function of q: log E_q exp(f) + KL(φ ‖ q)."""
    return log_integrate(f + log_q) + kl(at.log_phi, log_q)


def excess_3_1(f: np.ndarray, at: Smoothing, log_q: np.ndarray) -> np.ndarray:
    """By (3.2) the bracket of (3.1) exceeds F_τ by KL(q ‖ q_{x,τ})."""
    return kl(log_q, normalised(at.log_phi - f))


def excess_4_1(f: np.ndarray, at: Smoothing, log_q: np.ndarray) -> np.ndarray:
    """The bracket of (4.1) exceeds F^H_τ by KL(φ ‖ exp(f) q / E_q exp(f)).

    So it is least for exp(f) q = φ: q is q_{x,τ}, with exp(-f), as the paper says.
    """
    return kl(at.log_phi, normalised(f + log_q))


class Theorem(NamedTuple):
    """A characterisation: `bracket` = F + `excess`, which is at least 0 for all q."""

    bracket: Callable[[np.ndarray, Smoothing, np.ndarray], np.ndarray]
    excess: Callable[[np.ndarray, Smoothing, np.ndarray], np.ndarray]
    objective: Callable[[Smoothing], np.ndarray]
    color: str


THEOREMS = {
    "3.1": Theorem(
        bracket_3_1, excess_3_1, lambda at: at.local_entropy, plotting.COLORS["SGLD"]
    ),
    "4.1": Theorem(bracket_4_1, excess_4_1, lambda at: at.heat, plotting.COLORS["HR"]),
}


def perturbed(log_q: np.ndarray, x: float, tau: float) -> dict[str, np.ndarray]:
    """Densities near q, perturbed by SIZES in several directions, (sizes, n)."""
    size, scale = SIZES[:, None], np.sqrt(tau)
    bump = np.exp(-(((POINTS - x) / scale - 0.5) ** 2) / 0.2)
    share = size[SIZES > 0] / 2
    other = log_gaussian(x + scale, tau / 4)
    return {
        "tilt": normalised(log_q + size * (POINTS - x) / scale),
        "bump": normalised(log_q + 3 * size * bump),
        # Interpolation errors do not matter, as any density will do.
        "shift": normalised(
            np.stack(
                [np.interp(POINTS - 0.4 * s * scale, POINTS, log_q) for s in SIZES]
            )
        ),
        "power": normalised((1 + 0.6 * size) * log_q),
        "mixture": np.logaddexp(np.log1p(-share) + log_q, np.log(share) + other),
    }


def found_blindly(theorem: str, f: np.ndarray, log_phi: np.ndarray) -> np.ndarray:
    """The q on a coarse grid that an optimiser finds from φ, using the bracket only.

    For u, which is log q up to a constant, (4.1) is log ∫ exp(u + f) - ∫ φu plus a
    constant.
    """
    phi = np.exp(log_phi - scipy.special.logsumexp(log_phi))

    def objective(u: np.ndarray) -> tuple[float, np.ndarray]:
        if theorem == "4.1":
            tilted = scipy.special.log_softmax(u + f)
            return scipy.special.logsumexp(u + f) - phi @ u, np.exp(tilted) - phi
        log_q = scipy.special.log_softmax(u)
        q, cost = np.exp(log_q), f + log_q - np.log(phi)
        return q @ cost, q * (cost - q @ cost)

    best = scipy.optimize.minimize(
        objective, np.log(phi), jac=True, method="BFGS", options={"gtol": 1e-8}
    )
    return scipy.special.softmax(best.x)


def blind_distances(theorem: str, loss: Loss, x: float, tau: float) -> dict:
    """Total variation distance of the q found to exp(-f) φ, exp(+f) φ and φ."""
    points = x + np.sqrt(tau) * np.linspace(-3, 3, 31)
    f, log_phi = loss.value(points), -((points - x) ** 2) / (2 * tau)
    q = found_blindly(theorem, f, log_phi)
    return {
        name: np.abs(q - scipy.special.softmax(log_phi + sign * f)).sum() / 2
        for name, sign in (("exp(-f) φ", -1), ("φ", 0), ("exp(+f) φ", 1))
    }


class Measured(NamedTuple):
    """The results for one theorem, at one loss, x and τ.

    Attributes:
        gap: |bracket at q_{x,τ} - F|.
        rises: by direction, bracket - F (sizes,).
        mismatch: the largest difference of a rise from `excess`.
        others: bracket - F at φ and at exp(+f) φ, which do not attain the minimum.
        blind: distances of the optimiser's q.
    """

    gap: float
    rises: dict[str, np.ndarray]
    mismatch: float
    others: dict[str, float]
    blind: dict[str, float]


def measure(name: str, loss: Loss, x: float, tau: float) -> Measured:
    """All results for a theorem at one loss, x and τ."""
    theorem, f, at = THEOREMS[name], loss.value(POINTS), smooth(loss, x, tau)
    least = theorem.objective(at)
    densities = perturbed(at.log_q, x, tau)
    others = {"φ": at.log_phi, "exp(+f) φ": normalised(at.log_phi + f)}
    rises = {k: theorem.bracket(f, at, q) - least for k, q in densities.items()}
    return Measured(
        gap=abs(float(theorem.bracket(f, at, at.log_q) - least)),
        rises=rises,
        mismatch=max(
            float(np.abs(rises[k] - theorem.excess(f, at, q)).max())
            for k, q in densities.items()
        ),
        others={k: float(theorem.bracket(f, at, q) - least) for k, q in others.items()},
        blind=blind_distances(name, loss, x, tau),
    )


def checks(name: str, measured: dict[str, Measured]) -> list[Check]:
    """Checks of the worst case over all losses, centres and τ."""
    of = measured.values()
    f = {"3.1": "F", "4.1": "F^H"}[name]
    found = [
        at_most(f"|bracket at q of (2.6) - {f}|, largest",
                max(m.gap for m in of), 1e-6),
        at_least("least rise over all perturbations of q",
                 min(rise.min() for m in of for rise in m.rises.values()), 1e-9),
        at_most("the rise is the KL divergence that it should be, error",
                max(m.mismatch for m in of), 1e-8),
        at_least("least rise at φ and at exp(+f) φ, which are not minimal",
                 min(rise for m in of for rise in m.others.values()), 1e-3),
        at_most("distance of q found by an optimiser from exp(-f) φ",
                max(m.blind["exp(-f) φ"] for m in of), 1e-3),
        at_least("its distance from φ and exp(+f) φ, least",
                 min(min(m.blind["φ"], m.blind["exp(+f) φ"]) for m in of), 1e-2),
    ]  # fmt: skip
    return [c._replace(claim=f"Theorem {name}: {c.claim}") for c in found]


def draw(options: Options, measured: dict[str, Measured], title: str) -> None:
    """A panel for each theorem: the bracket against the size of the perturbation."""
    path = options.output / "theorems_3_1_4_1.png"
    brackets = {
        "3.1": "E$_q$ f + KL(q ‖ φ)  minus  F",
        "4.1": "log E$_q$ exp(f) + KL(φ ‖ q)  minus  F$^H$",
    }
    with plotting.figure(path, 1, 2, figsize=(11.5, 4.2)) as (_, axes):
        for ax, (name, theorem) in zip(axes.flat, THEOREMS.items(), strict=True):
            ends = []
            styles = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
            rises = measured[name].rises.items()
            for (direction, rise), style in zip(rises, styles, strict=True):
                size = SIZES[-len(rise) :]
                ax.plot(size, rise, ls=style, color=theorem.color, lw=1.8)
                ends.append((rise[-1], direction, theorem.color))
            ax.plot(0, 0, "o", color=theorem.color, ms=9, zorder=3)
            ax.annotate("at q of (2.6): 0", (0, -0.06), ha="center", va="top")
            plotting.tidy(
                ax,
                title=f"Theorem {name}: {brackets[name]}",
                xlabel=f"size of the perturbation of q ({title})",
                xlim=(-1, 1),
                ylim=(-0.13, max(height for height, _, _ in ends) * 1.05),
            )
            plotting.label_ends(ax, ends, 1.0)


def main(options: Options) -> None:
    """Compute, check, draw and write both theorems."""
    names = ("bimodal",) if options.quick else tuple(LOSSES)
    cases = [
        (name, x, tau)
        for name in names
        for tau in TAUS
        for x in (CENTRES[1:2] if options.quick else CENTRES)
    ]
    measured = {
        theorem: {
            f"{name}, x = {x}, τ = {tau}": measure(theorem, LOSSES[name], x, tau)
            for name, x, tau in cases
        }
        for theorem in THEOREMS
    }
    shown = f"bimodal, x = {CENTRES[1]}, τ = {TAUS[1]}"
    draw(options, {theorem: of[shown] for theorem, of in measured.items()}, shown)
    print(f"\n{'':38}|bracket - F|  rise at the smallest and largest perturbation")
    for theorem, of in measured.items():
        for case, m in of.items():
            low = min(rise.min() for rise in m.rises.values())
            high = max(rise.max() for rise in m.rises.values())
            print(f"{theorem} {case:34}{m.gap:13.1e}{low:12.1e}{high:10.2f}")
    print()
    found = report([c for theorem, of in measured.items() for c in checks(theorem, of)])
    print(f"Finding: {FINDING}")
    results.write_json(
        options.output / "theorems_3_1_4_1.json",
        options,
        checks=found,
        findings=[FINDING],
        sizes=SIZES.tolist(),
        measured={
            theorem: {
                case: {
                    **m._asdict(),
                    "rises": {k: r.tolist() for k, r in m.rises.items()},
                }
                for case, m in of.items()
            }
            for theorem, of in measured.items()
        },
    )


if __name__ == "__main__":
    execute(main, __doc__)
