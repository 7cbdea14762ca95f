"""Losses with known smoothings, and comparisons measured in standard errors."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def skewed(x):
    """Convex and lopsided."""
    return jnp.exp(x) + jnp.asarray(0.3, x.dtype) * x**2


def bimodal(x):
    """Two wells of different depth."""
    return jnp.asarray(1.5, x.dtype) * (x**2 - 1) ** 2 + jnp.asarray(0.4, x.dtype) * x


ONE_DIMENSIONAL = {"skewed": skewed, "bimodal": bimodal}


class Quadrature(NamedTuple):
    """Smoothings of a loss on the line, by the trapezoidal rule (exact to rounding)."""

    displacement: float  # E_q[X] - x
    free_energy: float  # F_{τ,β}(x)
    variance: float  # Var_q X
    heat: float  # F^H_τ(x)
    heat_gradient: float  # E_φ f'(X)


def quadrature(value_fn, x, tau, beta=1.0):
    """Integrate against φ = N(x, τ) and q ∝ exp(-βf) φ on a fine grid, in float64."""
    noise, spacing = np.linspace(-12, 12, 24_001, retstep=True)
    with jax.enable_x64(True):
        points = jnp.asarray(x + np.sqrt(tau) * noise)
        loss = np.asarray(jax.vmap(value_fn)(points))
        slope = np.asarray(jax.vmap(jax.grad(value_fn))(points))
    phi = np.exp(-(noise**2) / 2) * spacing / np.sqrt(2 * np.pi)
    log_weight = -beta * loss
    top = log_weight.max()
    weight = phi * np.exp(log_weight - top)
    total = weight.sum()
    delta = np.sqrt(tau) * noise
    mean = (weight * delta).sum() / total
    return Quadrature(
        displacement=mean,
        free_energy=-(top + np.log(total)) / beta,
        variance=(weight * delta**2).sum() / total - mean**2,
        heat=(phi * loss).sum(),
        heat_gradient=(phi * slope).sum(),
    )


class Quadratic(NamedTuple):
    """f(x) = ½xᵀAx on a nested tree of four numbers, with its closed forms."""

    matrix: np.ndarray

    def params(self, dtype=jnp.float32):
        return {
            "a": jnp.asarray([1.0, -0.5], dtype),
            "b": {"c": jnp.asarray([[0.3, 0.8]], dtype)},
        }

    def flat(self, tree):
        """The numbers of a tree, leading axes kept: (..., 4)."""
        a, c = tree["a"], tree["b"]["c"]
        return np.concatenate([np.asarray(a), np.asarray(c)[..., 0, :]], -1).astype(
            np.float64
        )

    def value_fn(self, tree):
        x = jnp.concatenate([tree["a"], tree["b"]["c"].ravel()])
        return x @ jnp.asarray(self.matrix, x.dtype) @ x / 2

    def displacement(self, x, tau, beta=1.0):
        """E_q[X] - x, with E_q[X] = (I + βτA)⁻¹x."""
        return np.linalg.solve(np.eye(4) + beta * tau * self.matrix, x) - x

    def free_energy(self, x, tau, beta=1.0):
        """½xᵀA(I + βτA)⁻¹x + log det(I + βτA)/2β."""
        spread = np.eye(4) + beta * tau * self.matrix
        log_det = np.linalg.slogdet(spread)[1]
        return x @ self.matrix @ np.linalg.solve(spread, x) / 2 + log_det / (2 * beta)

    def heat(self, x, tau):
        """½xᵀAx + τ tr(A)/2."""
        return x @ self.matrix @ x / 2 + tau * np.trace(self.matrix) / 2


_root = np.random.default_rng(0).normal(size=(4, 4))
QUADRATIC = Quadratic(_root @ _root.T / 4 + np.diag([0.2, 0.5, 1.0, 2.0]))


def replicate(fn, replicates, seed=0, *, given=()):
    """`fn(key, *given)` for many keys, stacked.

    What is given is traced: one program serves every τ, β and data of a shape.
    """
    over_keys = jax.vmap(fn, (0, *(None,) * len(given)))
    keys = jax.random.split(jax.random.key(seed), replicates)
    return jax.jit(over_keys)(keys, *given)


def assert_mean(samples, truth, sigmas=4.0, bias=0.0):
    """The mean over the leading axis is `truth`, to `sigmas` standard errors.

    `bias` is what is known and allowed beside them.
    """
    samples = np.asarray(samples, np.float64)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    gap = np.abs(samples.mean(0) - truth)
    assert (gap <= sigmas * error + bias).all(), (
        f"mean {samples.mean(0)} is not {truth}: {gap / error} standard errors"
    )
