"""Exact smoothings in one dimension, and checks, for the experiments on theory.

Functions are arrays over one fine grid, in float64. A density is the array of its
logarithm. The trapezoidal rule is exact to rounding: the integrands are smooth on the
scale of the grid and vanish at its ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

POINTS, SPACING = np.linspace(-15, 15, 3001, retstep=True)
CANDIDATES = np.linspace(-6, 6, 601)  # the first candidates for minimisers


class Loss(NamedTuple):
    """A loss of one variable and its derivative, for arrays of NumPy or JAX."""

    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]


def _wells(*wells: tuple[float, float, float]) -> Loss:
    """Gaussian wells (depth, centre, width) in a wide parabola."""

    def each(x: Any) -> list[Any]:
        exp = x.__array_namespace__().exp
        return [d * exp(-(((x - c) / w) ** 2) / 2) for d, c, w in wells]

    def slope(x: Any) -> Any:
        terms = zip(each(x), wells, strict=True)
        return 0.1 * x + sum(e * (x - c) / w**2 for e, (_, c, w) in terms)

    return Loss(lambda x: 0.05 * x**2 - sum(each(x)), slope)


def _skewed_value(x: Any) -> Any:
    return 0.05 * x**2 + x.__array_namespace__().logaddexp(0 * x, 3 * x)


def _skewed_slope(x: Any) -> Any:
    return 0.1 * x + 1.5 * (1 + x.__array_namespace__().tanh(1.5 * x))


def _many_wells_value(x: Any) -> Any:
    return 0.05 * x**2 + 0.2 * x - 5 * x.__array_namespace__().cos(3 * x)


def _many_wells_slope(x: Any) -> Any:
    return 0.1 * x + 0.2 + 15 * x.__array_namespace__().sin(3 * x)


# All grow like x²/20, so that exp(f) is integrable against the densities used here.
LOSSES = {
    "skewed": Loss(_skewed_value, _skewed_slope),
    "bimodal": _wells((4.0, -1.5, 0.3), (3.0, 1.2, 0.9)),
    "many wells": Loss(_many_wells_value, _many_wells_slope),
}


def integrate(values: Any) -> np.ndarray:
    """The integral along the last axis."""
    return np.asarray(values).sum(-1) * SPACING


def log_integrate(log_values: Any) -> np.ndarray:
    """The logarithm of the integral of exp(log_values) along the last axis."""
    return scipy.special.logsumexp(log_values, axis=-1) + np.log(SPACING)


def normalised(log_density: Any) -> np.ndarray:
    """The log-density, normalised to integral 1."""
    return log_density - log_integrate(log_density)[..., None]


def log_gaussian(mean: Any, variance: Any) -> np.ndarray:
    """The log-density of N(mean, variance), with one row for each mean."""
    gap = POINTS - np.asarray(mean)[..., None]
    return -(gap**2) / (2 * variance) - np.log(2 * np.pi * variance) / 2


def kl(log_p: Any, log_q: Any) -> np.ndarray:
    """KL(p ‖ q) = ∫ p log(p/q), from log-densities."""
    return integrate(np.exp(log_p) * (log_p - log_q))


class Smoothing(NamedTuple):
    """A loss smoothed at x (…,): φ = N(x, τ), and q ∝ exp(-βf) φ.

    Attributes:
        log_phi: log φ (…, n).
        log_q: log q (…, n).
        mean: E_q[X], the next iterate of Algorithm 1.
        local_entropy: F_{τ,β}(x) = -log E_φ exp(-βf) / β.
        gradient: ∇F_{τ,β}(x) = (x - E_q[X]) / (βτ).
        heat: F^H_τ(x) = E_φ f.
        heat_gradient: E_φ f'.
    """

    log_phi: np.ndarray
    log_q: np.ndarray
    mean: np.ndarray
    local_entropy: np.ndarray
    gradient: np.ndarray
    heat: np.ndarray
    heat_gradient: np.ndarray


def smooth(loss: Loss, x: Any, tau: float, beta: float = 1.0) -> Smoothing:
    """Both smoothings of the loss at x, by their definitions."""
    x = np.asarray(x, float)
    f = loss.value(POINTS)
    log_phi = log_gaussian(x, tau)
    log_weighted = log_phi - beta * f
    log_z = log_integrate(log_weighted)
    log_q = log_weighted - log_z[..., None]
    mean = integrate(np.exp(log_q) * POINTS)
    phi = np.exp(log_phi)
    return Smoothing(
        log_phi=log_phi,
        log_q=log_q,
        mean=mean,
        local_entropy=-log_z / beta,
        gradient=(x - mean) / (beta * tau),
        heat=integrate(phi * f),
        heat_gradient=integrate(phi * loss.slope(POINTS)),
    )


def kernel(at: Any, points: np.ndarray, tau: float) -> np.ndarray:
    """The weights of N(at, τ) on a grid, (len(at), len(points)).

    In two dimensions `kernel(x, …) @ values @ kernel(y, …).T` is the convolution.
    """
    gap = np.asarray(at)[..., None] - points
    weights = np.exp(-(gap**2) / (2 * tau)) / np.sqrt(2 * np.pi * tau)
    return weights * (points[1] - points[0])


class Run(NamedTuple):
    """Exact iterates from many starts.

    Attributes:
        x: (iterations + 1, starts).
        objective: F_τ or F^H_τ there.
        gradient: its gradient there.
    """

    x: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray


def algorithm_1(loss: Loss, starts: np.ndarray, tau: float, iterations: int) -> Run:
    """x_{k+1} = E_q[X]."""
    x, rows = starts, []
    for _ in range(iterations + 1):
        at = smooth(loss, x, tau)
        rows.append((x, at.local_entropy, at.gradient))
        x = at.mean
    return Run(*map(np.stack, zip(*rows, strict=True)))


def algorithm_2(loss: Loss, starts: np.ndarray, tau: float, iterations: int) -> Run:
    """x_{k+1} = argmin_y KL(φ_y ‖ q_{x_k}): the best candidate, improved by Newton."""
    x, rows = starts, []
    phi = kernel(CANDIDATES, POINTS, tau)  # with the weights of the integral
    for _ in range(iterations + 1):
        at = smooth(loss, x, tau)
        rows.append((x, at.heat, at.heat_gradient))
        # The entropy of φ_y does not depend on y.
        best = (-phi @ at.log_q.T).argmin(0)
        x = zero_of_h(loss, x, CANDIDATES[best], tau)
    return Run(*map(np.stack, zip(*rows, strict=True)))


def zero_of_h(loss: Loss, x: np.ndarray, near: np.ndarray, tau: float) -> np.ndarray:
    """Newton's method for h(y) = y - x + τ E f'(Y), Y ~ N(y, τ), of section 5.2."""
    y, slope = near, loss.slope(POINTS)
    for _ in range(5):
        phi = np.exp(log_gaussian(y, tau))
        h = y - x + tau * integrate(phi * slope)
        y = y - h / (1 + integrate(phi * slope * (POINTS - y[..., None])))
    return y


def estimated(
    fn: Callable[..., Any], *at: Any, replicates: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors of `fn(key, *row)`, at every row of `at`, over keys."""
    rows = [jnp.tile(jnp.asarray(column, jnp.float32).T, replicates).T for column in at]
    keys = jax.random.split(jax.random.key(seed), len(rows[0]))
    found = np.asarray(jax.jit(jax.vmap(fn))(keys, *rows), float)
    found = found.reshape(replicates, -1, *found.shape[1:])
    return found.mean(0), found.std(0, ddof=1) / np.sqrt(replicates)


class Check(NamedTuple):
    """A claim, the measured number, and the bound that it is compared with."""

    claim: str
    value: float
    relation: str
    bound: float
    holds: bool


def at_most(claim: str, value: Any, bound: float) -> Check:
    """A check that value ≤ bound; NaN fails."""
    return Check(claim, float(value), "<=", float(bound), bool(value <= bound))


def at_least(claim: str, value: Any, bound: float) -> Check:
    """A check that value ≥ bound; NaN fails."""
    return Check(claim, float(value), ">=", float(bound), bool(value >= bound))


def report(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Prints the checks, one on each line, and returns them as JSON values."""
    for check in checks:
        verdict = "holds" if check.holds else "DOES NOT HOLD"
        print(
            f"{check.claim}: {check.value:.3g} {check.relation} {check.bound:.3g}, "
            f"{verdict}"
        )
    failed = sum(not check.holds for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} checks hold.")
    return [check._asdict() for check in checks]
