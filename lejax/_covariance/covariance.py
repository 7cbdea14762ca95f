"""The covariance Σ = LLᵀ of φ = N(x, Σ), stored as its root L.

A draw is x + Lu with u ~ N(0, I). Σ is learnt in the coordinates u, in which it is I.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lejax._covariance.elementwise import Elementwise
from lejax._covariance.full import MAX_DENSE_SIZE, Full
from lejax._covariance.low_rank import LowRank, isotropic_low_rank
from lejax._internal.trees import compute_dtype
from lejax._internal.types import PyTree

Structure = Literal["scale", "diagonal", "low_rank", "full"]


Covariance: TypeAlias = Elementwise | LowRank | Full


def isotropic(
    structure: Structure, zeros: PyTree, variance: Any, rank: int, key: jax.Array
) -> Covariance:
    """τI, the initial covariance, in this structure."""
    scale = jnp.sqrt(jnp.asarray(variance, compute_dtype(zeros)))
    if structure == "low_rank":
        return isotropic_low_rank(zeros, scale, rank, key)
    if structure == "full":
        flat = ravel_pytree(zeros)[0]
        if flat.size > MAX_DENSE_SIZE:
            raise ValueError(
                f"covariance='full' supports at most {MAX_DENSE_SIZE} parameters, got "
                f"{flat.size}; pass covariance='diagonal' or 'low_rank'."
            )
        return Full(scale.astype(flat.dtype) * jnp.eye(flat.size, dtype=flat.dtype))
    shapes = {"scale": lambda leaf: (), "diagonal": jnp.shape}
    return Elementwise(
        jax.tree.map(
            lambda leaf: jnp.full(shapes[structure](leaf), scale, leaf.dtype), zeros
        )
    )
