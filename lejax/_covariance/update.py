"""The update of a covariance by moments, or by the natural gradient.

All arguments are in the coordinates u, in which x + Lu is a draw.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lejax._covariance.covariance import Covariance
from lejax._info import Info, is_known
from lejax._internal.trees import compute_dtype, scaled
from lejax._internal.types import PyTree


def by_moments(
    root: Covariance,
    moved: PyTree,
    excess: PyTree,
    noise: jax.Array,
    rate: Any,
    change: Any,
    bounds: Any,
) -> tuple[Covariance, jax.Array]:
    """(1 - ρ)Σ + ρ Cov_q + ρ(1 - ρ) times the square of the mean's step.

    `moved` is the step, and `excess` is E_q uuᵀ - I. If the noise of the step is known,
    |noise|² in all, it is subtracted from the square: it would shrink Σ in every
    update.
    """
    dtype = compute_dtype(moved)
    one = jax.tree.map(lambda leaf: leaf[None], moved)
    square = root.products(one, one, jnp.ones(1, dtype))
    each = jnp.where(is_known(noise), noise, 0) / max(optax.tree.size(moved), 1)
    square = optax.tree.sub(square, scaled(root.unit(), each))
    learnt = optax.tree.sub(scaled(excess, rate), scaled(square, rate**2))
    factor = root.factor(learnt, 1 / change, change)
    return root.stretched(factor, 1, bounds)


def by_natural_gradient(
    root: Covariance,
    slope: PyTree,
    bend: PyTree,
    rate: Any,
    change: Any,
    bounds: Any,
) -> tuple[PyTree, tuple[Covariance, jax.Array]]:
    """The step of the mean, and the covariance with the precision Σ⁻¹ + ρβ E∇²f.

    `slope` and `bend` are β E∇f and β E∇²f.
    """
    steep = root.factor(bend, 1 / change, jnp.inf)
    factor = root.factor(scaled(bend, rate), 1 / change, change)
    moved = root.solve(steep, scaled(slope, -1))
    return moved, root.stretched(factor, -1, bounds)


def within_reach(moved: PyTree, change: Any) -> PyTree:
    """The step u, shortened to a root mean square of at most √c."""
    # In units of the largest part, as its square may overflow.
    parts = [jnp.abs(leaf).max(initial=1e-30) for leaf in jax.tree.leaves(moved)]
    top = jnp.stack(parts).max()
    length = top * optax.tree.norm(scaled(moved, 1 / top))
    reach = jnp.sqrt(change * optax.tree.size(moved)) / length
    return scaled(moved, jnp.minimum(reach, 1))


def with_constant(info: Info, root: Covariance, zeros: PyTree, temp: Any) -> Info:
    """The info with the constant of T log φ in the objective, and the mean variance."""
    size, dtype = optax.tree.size(zeros), info.objective.dtype
    constant = size / 2 * math.log(2 * math.pi)
    constant = constant + root.log_determinant(zeros).astype(dtype)
    variances = optax.tree.sum(root.variances(zeros))
    return info._replace(
        objective=info.objective - temp * constant,
        tau_used=jnp.asarray(variances / size, dtype),
    )
