"""Flow through a porous medium: its permeability from the pressure at 64 places.

-∇·(e^κ ∇p) = 1 on the unit square with p = 0 at its border, by finite volumes with
64 × 64 cells. κ is a Gaussian field N(0, c (9 - Δ)⁻²) of variance 1 with 256
coefficients.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.applications.inverse.problem import (
    InverseProblem,
    standard,
    with_noise,
)

CELLS, MODES, PLACES, DEVIATION = 64, 16, 8, 5e-4
# In single precision a good solution has a residual of 10⁻⁴ of the source.
TOLERANCE, ITERATIONS, RESIDUAL = 1e-5, 200, 1e-2


def modes() -> np.ndarray:
    """√λ φ for all coefficients, at the cells, (256, 64, 64)."""
    middles = (np.arange(CELLS) + 0.5) / CELLS
    k = np.arange(MODES)
    waves = np.cos(np.pi * np.outer(k, middles)) * np.where(k, np.sqrt(2), 1)[:, None]
    squares = np.pi**2 * (k[:, None] ** 2 + k**2)
    weights = 1 / (squares + 9)
    weights /= np.sqrt((weights**2).sum())
    found = np.einsum("ij,ia,jb->ijab", weights, waves, waves)
    return found.reshape(MODES**2, CELLS, CELLS)


def pressure(kappa: jax.Array) -> jax.Array:
    """p at the cells, for κ at the cells."""
    a = jnp.exp(kappa)

    def conductances(a: jax.Array) -> jax.Array:
        """The conductances of the faces across the first axis, (65, 64).

        Harmonic means, as the flow crosses two halves of cells. A face at the border is
        half a cell away.
        """
        inner = 2 * a[1:] * a[:-1] / (a[1:] + a[:-1])
        return jnp.concatenate([2 * a[:1], inner, 2 * a[-1:]])

    down, right = conductances(a), conductances(a.T)

    def flow(p: jax.Array, faces: jax.Array) -> jax.Array:
        """The flow out of the cells along the first axis."""
        through = faces * jnp.diff(p, axis=0, prepend=0.0, append=0.0)
        return -jnp.diff(through, axis=0)

    def outflow(p: jax.Array) -> jax.Array:
        return flow(p, down) + flow(p.T, right).T

    # The preconditioner: the Laplacian, by sines, and the mean permeability.
    k, cells = 1 + np.arange(CELLS), np.arange(CELLS) + 0.5
    sines = np.sin(np.pi * np.outer(k, cells) / CELLS)
    sines /= np.linalg.norm(sines, axis=1, keepdims=True)
    rises = 2 - 2 * np.cos(np.pi * k / CELLS)
    to_waves = jnp.asarray(sines, jnp.float32)
    inverse = jnp.asarray(1 / (rises[:, None] + rises), jnp.float32)
    scale = jax.lax.stop_gradient(jnp.exp(-jnp.mean(kappa)))

    def precondition(r: jax.Array) -> jax.Array:
        waves = to_waves @ r @ to_waves.T
        return scale * (to_waves.T @ (inverse * waves) @ to_waves)

    source = jnp.full((CELLS, CELLS), 1 / CELLS**2)
    p = jax.scipy.sparse.linalg.cg(
        outflow, source, tol=TOLERANCE, maxiter=ITERATIONS, M=precondition
    )[0]
    # With permeabilities over many orders of magnitude the solver can fail: return NaN.
    left = jnp.linalg.norm(source - outflow(p)) / jnp.linalg.norm(source)
    return jnp.where(left < RESIDUAL, p, jnp.nan)


@functools.cache
def problem() -> InverseProblem:
    """The inverse problem of this file."""
    basis = jnp.asarray(modes(), jnp.float32)
    places = (CELLS // PLACES) * np.arange(PLACES) + CELLS // PLACES // 2

    def field(u: jax.Array) -> jax.Array:
        return jnp.tensordot(u, basis, 1)

    def forward(u: jax.Array) -> jax.Array:
        return pressure(field(u))[places[:, None], places].ravel()

    return InverseProblem(
        dimensions=MODES**2,
        forward=forward,
        covariance=DEVIATION**2,
        truth=standard(MODES**2),
        observe=with_noise(forward, DEVIATION),
        field=field,
        solves=5_000,
        covariances=("diagonal", "low_rank"),
        strategies=("Sep_CMA_ES", "LM_MA_ES"),
    )
