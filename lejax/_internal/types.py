"""The types of arguments that many functions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike

# Any tree of arrays; a type checker cannot check more.
PyTree: TypeAlias = Any

# A real number, which may be traced.
Scalar: TypeAlias = float | np.floating | np.integer | np.ndarray | jax.Array

# A function of the number of updates, or of inner steps, so far, as in optax.
Schedule: TypeAlias = Callable[[jax.Array], ArrayLike]
ScalarOrSchedule: TypeAlias = Scalar | Schedule

# `value_fn(params, batch)`, or `value_fn(params)`: f, or with `has_aux` (f, aux).
LossFn: TypeAlias = Callable[..., ArrayLike | tuple[ArrayLike, PyTree]]

# A tree of booleans, or a prefix of one, or a function of the parameters.
Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None
