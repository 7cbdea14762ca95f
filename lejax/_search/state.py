"""The state of a search: arrays of fixed shapes, also through restarts."""

from __future__ import annotations

from typing import NamedTuple

import jax


class SearchState(NamedTuple):
    """The state of `search_rule`.

    All fields are arrays of fixed shapes and dtypes. They can be mapped over, scanned
    over and saved. The covariance of the draws is σ²AAᵀ, with A of determinant 1.

    Attributes:
        mean: the centre of the draws, (d,), inside the box.
        scale: σ.
        root: A, (d, d), symmetric.
        scale_path: p, the path that adapts σ, (d,), in the coordinates of A⁻¹.
        shape_path: p_c, the path that adapts A, (d,), in units of σ.
        population: J, the number of points of this update that count.
        step: the number of updates so far.
        run_step: the number of updates since the last restart.
        key: the key that `init` was given; every update folds `step` into it.
        best_x: the point with the least loss so far, (d,); before the first loss, the
            mean.
        best_value: its loss; +inf before the first. If losses are noisy, it is lower
            than the expected loss at `best_x`.
        num_evaluations: the number of losses that counted so far, failed ones included.
        num_restarts: the number of restarts so far.
        stalled: True if a stop rule held at the last update. With restarts, the state
            is then the first of the next run.
        first_mean: the mean that `init` was given.
        first_scale: the scale that `init` was given.
        history: the least loss of each of the latest updates of the run, the latest
            last; +inf if all failed, or where the run is shorter.

    Examples:
        The standard deviations of the draws before the first update:

        >>> import jax, jax.numpy as jnp, lejax
        >>> state = lejax.search_rule().init(jax.random.key(0), jnp.zeros(2), 0.5)
        >>> covariance = state.scale**2 * state.root @ state.root.T
        >>> print(jnp.sqrt(jnp.diag(covariance)), state.population)
        [0.5 0.5] 6
    """

    mean: jax.Array
    scale: jax.Array
    root: jax.Array
    scale_path: jax.Array
    shape_path: jax.Array
    population: jax.Array
    step: jax.Array
    run_step: jax.Array
    key: jax.Array
    best_x: jax.Array
    best_value: jax.Array
    num_evaluations: jax.Array
    num_restarts: jax.Array
    stalled: jax.Array
    first_mean: jax.Array
    first_scale: jax.Array
    history: jax.Array
