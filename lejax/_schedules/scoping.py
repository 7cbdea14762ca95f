"""Scoping: a schedule of τ over the updates (section 6.5.1)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lejax._internal.checks import positive
from lejax._internal.types import Scalar


def scoping(init_value: Scalar, rate: float) -> Callable[[ArrayLike], jax.Array]:
    """The scoping schedule of the paper.

    Use it as `tau` of `local_entropy` and `heat`, to start from a wide smoothing and
    end at a narrow one. If you have no good rate for τ and use `importance`, let
    `target_share` find τ. It is `optax.exponential_decay(tau_0, 1, 1 / (1 + tau_1))`.

        τ(k) = τ_0 / (1 + τ_1)^k,   k = 0, 1, ….

    For the algorithm of the paper, β times this schedule is also the learning rate of
    the `optax.sgd` behind.

    Args:
        init_value: τ_0 > 0.
        rate: τ_1 > -1; τ falls if it is positive and rises if it is negative.

    Returns:
        A schedule: a function of the number of updates so far.

    Raises:
        ValueError: `init_value` is not positive and finite, or `rate` is not a finite
            number above -1.

    Examples:
        >>> import lejax
        >>> tau = lejax.scoping(1.5, 0.01)
        >>> print(f"{tau(0):.2f} {tau(1):.3f} {tau(500):.4f}")
        1.50 1.485 0.0104

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 6.5.1.
    """
    positive("init_value", init_value)
    if not (isinstance(rate, numbers.Real) and math.isfinite(rate) and rate > -1):
        raise ValueError(
            f"rate must be a finite number above -1, got {rate!r}; "
            "pass for example rate=0.01, or rate=-0.01 to let τ rise."
        )
    decay = math.log1p(rate)

    def schedule(count: ArrayLike) -> jax.Array:
        # The logarithm keeps the power exact to rounding, also after 10^6 updates.
        return jnp.exp(-decay * jnp.asarray(count).astype(float)) * init_value

    return schedule
