"""The claims of Theorems 3.2 and 4.2 for both algorithms, measured by quadrature."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments.common.quadrature import (
    CANDIDATES,
    POINTS,
    Loss,
    Run,
    algorithm_1,
    algorithm_2,
    integrate,
    kl,
    log_gaussian,
    log_integrate,
    smooth,
    zero_of_h,
)

BETAS = (0.5, 1.0, 3.0)
STARTS = np.linspace(-4, 4, 21)
RATES = np.linspace(0.1, 3.1, 31)  # η/βτ
ALGORITHMS = {"Algorithm 1": algorithm_1, "Algorithm 2": algorithm_2}


def majoriser(loss: Loss, x: np.ndarray, tilde: np.ndarray, tau: float) -> np.ndarray:
    """A(x, x~) of section 3.2, (x, x~): E_q f + KL(q ‖ φ_x) with q at x~."""
    log_q = smooth(loss, tilde, tau).log_q
    mean = integrate(np.exp(log_q) * loss.value(POINTS))
    return mean + kl(log_q, log_gaussian(x, tau)[:, None])


def heat_majoriser(
    loss: Loss, x: np.ndarray, tilde: np.ndarray, tau: float
) -> np.ndarray:
    """A^H(x, x~) of section 4.2, (x, x~): log E_q exp(f) + KL(φ_x ‖ q), q at x~."""
    log_q = smooth(loss, tilde, tau).log_q
    log_mean = log_integrate(loss.value(POINTS) + log_q)
    return log_mean + kl(log_gaussian(x, tau)[:, None], log_q)


def majorisation(name: str, loss: Loss, tau: float) -> dict[str, float]:
    """The worst cases, over x and x~, of the claims about A and A^H in 3.2 and 4.2.

    `below`: the largest F - A; `apart`: the largest |A - F| at x~ = x; `update`: the
    largest excess of A at the algorithm's update over its minimum.
    """
    algorithm = ALGORITHMS[name]
    bound = {"Algorithm 1": majoriser, "Algorithm 2": heat_majoriser}[name]
    tilde, x = STARTS[::4], np.linspace(-6, 6, 121)
    steps = algorithm(loss, tilde, tau, 1)
    anywhere = bound(loss, x, tilde, tau)
    touching = np.diag(bound(loss, tilde, tilde, tau))
    at_update = np.diag(bound(loss, steps.x[1], tilde, tau))
    objective = algorithm(loss, x, tau, 0).objective[0]
    return {
        "below": (objective[:, None] - anywhere).max(),
        "apart": np.abs(touching - steps.objective[0]).max(),
        "update": (at_update - anywhere.min(0)).max(),
    }


def descent(run: Run, tau: float) -> dict[str, float]:
    """The worst cases for monotonicity and stationarity, over all steps and starts.

    `rise`: the largest F(x_{k+1}) - F(x_k); `excess`: the largest sum of this and
    |x_{k+1} - x_k|²/2τ, at most 0 by majorisation; `idle`: the largest |∇F| of steps
    that hardly changed F.
    """
    change, step = np.diff(run.objective, axis=0), np.diff(run.x, axis=0)
    gradient = np.maximum(*np.abs([run.gradient[1:], run.gradient[:-1]]))
    return {
        "rise": change.max(),
        "excess": (change + step**2 / (2 * tau)).max(),
        "idle": gradient[np.abs(change) < 1e-13].max(initial=0),
    }


def explicit_steps(loss: Loss, x: np.ndarray, tau: float, beta: float) -> Any:
    """F(x - η∇F) - F(x) in units of βτ|∇F|², (rates, x), and an error.

    The certificate bounds it by -η(1 - η/2βτ)|∇F|². The error is by the identity
    F(x + u) - F(x) = [(|u|² - 2u·δ)/2τ - KL(q_x ‖ q_{x+u})]/β, with δ = E_q[X] - x.
    """
    at = smooth(loss, x, tau, beta)
    u = -(RATES[:, None] * beta * tau) * at.gradient
    moved = smooth(loss, x + u, tau, beta)
    change = moved.local_entropy - at.local_entropy
    square = (u**2 - 2 * u * (at.mean - x)) / (2 * tau)
    error = np.abs(change - (square - kl(at.log_q, moved.log_q)) / beta).max()
    return change / (beta * tau * at.gradient**2), error


def bound(rate: np.ndarray) -> np.ndarray:
    """The certificate in the same units, as a function of η/βτ."""
    return -rate + rate**2 / 2


class Zero(NamedTuple):
    """A stable zero y of h for x_k: a local minimum of KL(φ_y ‖ q_{x_k}).

    Attributes:
        rise: F^H(y) - F^H(x_k).
        x: x_k.
        y: the zero.
    """

    rise: float
    x: float
    y: float


def worst_zero(loss: Loss, tau: float) -> Zero:
    """The stable zero of h that raises F^H most, over all x_k."""
    gradient = smooth(loss, CANDIDATES, tau).heat_gradient
    h = CANDIDATES - CANDIDATES[:, None] + tau * gradient  # (x_k, y)
    k, i = np.nonzero((h[:, :-1] < 0) & (h[:, 1:] > 0))
    x, left, right = CANDIDATES[k], CANDIDATES[i], CANDIDATES[i + 1]
    y = zero_of_h(loss, x, (left + right) / 2, tau)
    rise = smooth(loss, y, tau).heat - smooth(loss, x, tau).heat
    rise[(y < left) | (y > right)] = -np.inf  # Newton's method found another zero
    worst = rise.argmax()
    return Zero(float(rise[worst]), float(x[worst]), float(y[worst]))


def downhill(loss: Loss, x: np.ndarray, tau: float) -> float:
    """The largest F^H(y) - F^H(x) + |y - x|²/2τ, y from y ← y - h(y)/10 with y = x."""
    y = x
    for _ in range(100):
        y = y - (y - x + tau * smooth(loss, y, tau).heat_gradient) / 10
    change = smooth(loss, y, tau).heat - smooth(loss, x, tau).heat
    return (change + (y - x) ** 2 / (2 * tau)).max()


def gradient_errors(loss: Loss, tau: float, beta: float) -> tuple[float, float]:
    """Errors of (x - E_q[X])/βτ, (3.5), and of E f', by differences of F and F^H."""
    h = 1e-4
    at, up, down = (smooth(loss, STARTS + s, tau, beta) for s in (0, h, -h))
    entropy = (up.local_entropy - down.local_entropy) / (2 * h)
    heat = (up.heat - down.heat) / (2 * h)
    return np.abs(entropy - at.gradient).max(), np.abs(heat - at.heat_gradient).max()


class Case(NamedTuple):
    """All exact results for one loss and τ, by algorithm or by β."""

    runs: dict[str, Run]
    descents: dict[str, dict[str, float]]
    majorisations: dict[str, dict[str, float]]
    changes: dict[float, np.ndarray]
    errors: dict[str, tuple[float, float]]  # and their bounds
    zero: Zero
    downhill: float


def measure(loss: Loss, tau: float, starts: np.ndarray) -> Case:
    """Run both algorithms, and measure all claims about them."""
    runs = {name: run(loss, starts, tau, 25) for name, run in ALGORITHMS.items()}
    steps = {beta: explicit_steps(loss, starts, tau, beta) for beta in BETAS}
    slopes = np.max([gradient_errors(loss, tau, beta) for beta in BETAS], 0)
    heat = runs["Algorithm 2"]
    errors = {
        "(3.5), with β: (x - E_q X)/βτ against differences of F": (slopes[0], 1e-5),
        "E f' against differences of F^H": (slopes[1], 1e-5),
        "Algorithm 2 is x_{k+1} = x_k - τ∇F^H(x_{k+1})": (
            np.abs(np.diff(heat.x, axis=0) + tau * heat.gradient[1:]).max(), 1e-9
        ),
        "F(x + u) - F(x) by its identity with a KL divergence": (
            max(error for _, error in steps.values()), 1e-11
        ),
    }  # fmt: skip
    return Case(
        runs,
        {name: descent(run, tau) for name, run in runs.items()},
        {name: majorisation(name, loss, tau) for name in runs},
        {beta: change for beta, (change, _) in steps.items()},
        errors,
        worst_zero(loss, tau),
        downhill(loss, STARTS, tau),
    )
