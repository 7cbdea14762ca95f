"""End of section 5.2: Robbins-Monro directly on F^H, compared with Algorithm 5.

Both have equal numbers of gradients. Algorithm 5 uses J M of them for, at best, one
implicit step of rate τ. The direct form moves after every M. Its a_j multiplies ∇f,
while a_j of Algorithm 5 multiplies τ∇f. So rates must be chosen for each of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.interpolate
import scipy.stats

import lejax
from experiments.common import plotting, results
from experiments.common.command import execute
from experiments.common.options import Options
from experiments.common.quadrature import LOSSES, Check, at_most, report, smooth

DIMENSION, TAU = 10, 0.2
BUDGET = 900  # gradients between two records: the paper's J M
PAPER_RATE = 0.1  # c of a_j = c j^-0.7
RATES = (0.03, PAPER_RATE, 0.3, 1.0, 3.0, 10.0)
# Couples the coordinates; the Gaussian is invariant under it.
ROTATION = scipy.stats.ortho_group.rvs(DIMENSION, random_state=0)
RATE_NAMES = {"paper": "the paper's a_j", "chosen": "rates chosen for each"}
KINDS = {"skewed": slice(0, 5), "bimodal": slice(5, 10)}
TABLE = np.linspace(-12, 12, 801)


def loss(x: Any) -> Any:
    """The sum of the skewed and the bimodal loss of the rotated coordinates (…, d)."""
    u = x @ x.__array_namespace__().asarray(ROTATION.T, dtype=x.dtype)
    return sum(LOSSES[kind].value(u[..., of]).sum(-1) for kind, of in KINDS.items())


@functools.cache
def along(kind: str) -> scipy.interpolate.CubicSpline:
    """F^H_τ of a loss of one variable, by quadrature."""
    return scipy.interpolate.CubicSpline(TABLE, smooth(LOSSES[kind], TABLE, TAU).heat)


def heat(x: np.ndarray) -> np.ndarray:
    """F^H_τ of x (…, d), a sum of quadratures; +inf for x outside of the table."""
    u = np.asarray(x, float) @ ROTATION.T
    inside = (np.abs(u) < TABLE[-1]).all(-1)
    u = np.where(inside[..., None], u, 0)
    value = sum(along(kind)(u[..., part]).sum(-1) for kind, part in KINDS.items())
    return np.where(inside, value, np.inf)


def least() -> float:
    """min F^H_τ."""
    fine = np.linspace(-3, 3, 6001)
    return sum(5 * float(along(kind)(fine).min()) for kind in KINDS)


class Method(NamedTuple):
    """A method whose update costs `cost` gradients; `build` takes the rates a_j."""

    cost: int
    build: Callable[[Any], tuple[lejax.Sampler, optax.GradientTransformation]]
    color: str
    line: str


def direct(num_samples: int, line: str) -> Method:
    """x ← x - a_j mean ∇f(z_m), z_m ~ N(x, τI)."""
    sampler = lejax.pathwise(num_samples, antithetic=False)
    color = plotting.COLORS["SGD"]
    return Method(num_samples, lambda a: (sampler, optax.sgd(a)), color, line)


def algorithm_5(moves: int, line: str) -> Method:
    """x ← x_J of Algorithm 5 with J = M = `moves`; a_j restarts in every update."""

    def build(a: Any) -> tuple[lejax.Sampler, optax.GradientTransformation]:
        return lejax.robbins_monro(moves, moves, a, antithetic=False), optax.sgd(TAU)

    return Method(moves**2, build, plotting.COLORS["HR"], line)


METHODS = {
    "direct, M = 1": direct(1, "-"),
    "direct, M = 30": direct(30, "--"),
    "Algorithm 5, J = M = 30": algorithm_5(30, "-"),
    "Algorithm 5, J = M = 5": algorithm_5(5, "--"),
}


def run(
    method: Method, records: int, c: jax.Array, seed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The iterates after every BUDGET gradients (records + 1, d), and their number."""
    start_key, key = jax.random.split(jax.random.key(seed))
    sampler, sgd = method.build(lambda j: c * jnp.asarray(j + 1, jnp.float32) ** -0.7)
    tx = optax.chain(lejax.heat(sampler, TAU, key=key), sgd)

    def update(carry: Any, _: None) -> Any:
        x, state = carry
        updates, state = tx.update(optax.tree.zeros_like(x), state, x, value_fn=loss)
        used = optax.tree.get(state, "num_evaluations")
        return (optax.apply_updates(x, updates), state), used

    def record(carry: Any, _: None) -> Any:
        carry, used = jax.lax.scan(update, carry, None, BUDGET // method.cost)
        return carry, (carry[0], used.sum())

    start = 2 * jax.random.normal(start_key, (DIMENSION,))
    _, (x, used) = jax.lax.scan(record, (start, tx.init(start)), None, records)
    return jnp.concatenate([start[None], x]), used.sum()


class Curves(NamedTuple):
    """F^H - min F^H of one method on the test seeds, (seeds, records + 1).

    Attributes:
        paper: with a_j = 0.1 j^-0.7.
        chosen: with the rate that ends lowest on other seeds.
        rate: the c of this rate.
        gradients: the number of gradients of a run, as lejax counts them.
    """

    paper: np.ndarray
    chosen: np.ndarray
    rate: float
    gradients: int


def compare(method: Method, records: int, seeds: int) -> Curves:
    """Run seeds 0, 1, …, and choose the rate on as many seeds from 1000 on."""
    all_seeds = jnp.concatenate([jnp.arange(seeds), 1000 + jnp.arange(seeds)])
    over_seeds = jax.vmap(functools.partial(run, method, records), (None, 0))
    over_rates = jax.jit(jax.vmap(over_seeds, (0, None)))
    x, used = over_rates(jnp.asarray(RATES), all_seeds)
    found = heat(np.asarray(x)) - least()  # (rates, seeds, records + 1)
    best = int(found[:, seeds:, -1].mean(1).argmin())
    paper = RATES.index(PAPER_RATE)
    return Curves(
        found[paper, :seeds], found[best, :seeds], RATES[best], int(used.max())
    )


def gap(curves: dict[str, Curves], rate: str, one: str, other: str) -> Any:
    """Mean and half width of the 95 % interval of the difference at the end, paired."""
    ends = [getattr(curves[name], rate)[:, -1] for name in (one, other)]
    return [float(of) for of in plotting.interval(ends[0] - ends[1])]


def verdict(curves: dict[str, Curves], rate: str, one: str, other: str) -> str:
    """Which of two methods ends lower, if the interval excludes 0."""
    mean, width = gap(curves, rate, one, other)
    told = (
        "below"
        if mean + width < 0
        else "above"
        if mean > width
        else "not measurably apart from"
    )
    return (
        f"with {RATE_NAMES[rate]}, {one} ends {told} {other}: F^H differs by "
        f"{mean:.3f} ± {width:.3f} at equal gradients."
    )


def checks(curves: dict[str, Curves]) -> list[Check]:
    """Checks: F^H is exact, gradients are equal in number, the direct form is lower."""
    rng = np.random.default_rng(0)
    x = 1.5 * rng.normal(size=(DIMENSION,))
    draws = loss(np.sqrt(TAU) * rng.normal(size=(100_000, DIMENSION)) + x)
    error = draws.std() / np.sqrt(len(draws))
    counts = [of.gradients for of in curves.values()]
    one, _, *nested = METHODS
    compared = [("paper", nested[0]), *(("chosen", other) for other in nested)]
    return [
        at_most(
            "|z| of F^H by sampling against its exact value",
            abs(draws.mean() - heat(x)) / error, 4,
        ),
        at_most("gradients of a run: methods differ by", np.ptp(counts), 0),
        *(
            at_most(
                f"F^H at the end with {RATE_NAMES[rate]}, {one} less {other}, upper "
                "end of the 95 % interval", sum(gap(curves, rate, one, other)), 0,
            )
            for rate, other in compared
        ),
    ]  # fmt: skip


def draw(options: Options, curves: dict[str, Curves]) -> None:
    """F^H above its minimum against gradients, with the paper's and chosen rates."""
    path = options.output / "section_5_2.png"
    with plotting.figure(path, 1, 2, figsize=(13.5, 4.4), sharey=True) as (_, axes):
        for ax, rate in zip(axes[0], RATE_NAMES, strict=True):
            ends, last = [], 0
            for name, method in METHODS.items():
                values = getattr(curves[name], rate)
                gradients = BUDGET * np.arange(values.shape[1])
                last = gradients[-1]
                mean = plotting.curve(ax, gradients, values, method.color, method.line)
                label = (
                    name if rate == "paper" else f"{name}, c = {curves[name].rate:g}"
                )
                ends.append((np.log10(mean[-1]), label, method.color))
            title = {
                "paper": "the paper's a$_j$ = 0.1 j$^{-0.7}$",
                "chosen": "a$_j$ = c j$^{-0.7}$, c chosen on other seeds",
            }[rate]
            plotting.tidy(
                ax, title=title, xlabel="gradients of f", yscale="log", ylim=(3e-3, 40)
            )
            ax.set_xlim(0, last)
            label_logarithmic_ends(ax, ends)
        axes[0, 0].set_ylabel("F$^H$ - min F$^H$")


def label_logarithmic_ends(axes: Any, ends: list[tuple[float, str, Any]]) -> None:
    """Name lines beside their ends, at heights log10(y) kept apart."""
    low, high = np.log10(axes.get_ylim())
    ends = sorted(ends)
    heights = np.array([(height - low) / (high - low) for height, _, _ in ends])
    gaps = 0.07 * np.arange(len(ends))
    shown = gaps + np.maximum.accumulate(heights - gaps)
    shown -= (shown - heights).mean()
    for height, (_, name, color) in zip(shown, ends, strict=True):
        axes.annotate(
            name, (1.02, height), xycoords="axes fraction", color=color, va="center",
            annotation_clip=False,
        )  # fmt: skip


def main(options: Options) -> None:
    """Compute, check, draw and write the comparison."""
    seeds = options.seeds or (3 if options.quick else 20)
    records = options.updates or (5 if options.quick else 20)
    curves = {name: compare(of, records, seeds) for name, of in METHODS.items()}
    draw(options, curves)
    print(
        f"\nF^H - min F^H after {records * BUDGET} gradients, mean of {seeds} seeds "
        "± half width of the 95 % interval"
    )
    for name, of in curves.items():
        row = f"{name:26}"
        for title, values in (
            ("paper's a_j", of.paper),
            (f"c = {of.rate:g}", of.chosen),
        ):
            mean, width = plotting.interval(values[:, -1])
            row += f"{title:>14}: {mean:.3f} ± {width:.3f}"
        print(row)
    print()
    found = report(checks(curves))
    names = list(METHODS)
    findings = [
        verdict(curves, rate, one, other)
        for rate in RATE_NAMES
        for one in names[:2]
        for other in names[2:]
    ]
    for finding in findings:
        print(f"Finding: {finding}")
    results.write_json(
        options.output / "section_5_2.json",
        options,
        checks=found,
        findings=findings,
        gradients=[BUDGET * k for k in range(records + 1)],
        minimum=least(),
        curves={
            name: {
                **of._asdict(),
                "paper": of.paper.round(5).tolist(),
                "chosen": of.chosen.round(5).tolist(),
            }
            for name, of in curves.items()
        },
    )


if __name__ == "__main__":
    execute(main, __doc__)
