"""Robbins-Monro for the heat regularisation: Algorithm 5."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.draws import Plan
from lejax._estimators.moments import mean_info
from lejax._info import Info
from lejax._internal.checks import (
    optional_count,
    positive,
    positive_count,
    positive_or_schedule,
)
from lejax._internal.mesh_axes import make_axes
from lejax._internal.trees import all_finite, compute_dtype, scaled
from lejax._internal.types import PyTree, Scalar, ScalarOrSchedule
from lejax._samplers.pathwise import mean_gradient
from lejax._samplers.sampler import Sampler, make_sampler
from lejax._spaces.reduced import space_maker
from lejax._spaces.space import Space


def robbins_monro(
    num_steps: int,
    num_samples: int,
    step_size: ScalarOrSchedule,
    *,
    smoothing: Scalar | None = None,
    chunk_size: int | None = None,
    antithetic: bool = True,
    axis_name: str | None = None,
    data_axis_name: str | None = None,
    reduction: bool = True,
) -> Sampler:
    """Robbins-Monro for argmin_x KL(φ_{x,τ} ‖ q_{x_k,τ}) (Algorithm 5).

    The minimiser solves x = x_k - τ ∇F^H_τ(x): an implicit gradient step. From y = x_k,

        y ← y - a_j [y - x_k + (τ/M) Σ_m ∇f(z_m)],   z_m ~ N(y, τI),   j = 1, …, J.

    Stopped early it returns less than the step: for a constant gradient the share
    1 - Π_j(1 - a_j) of it, .485 for the paper's J = 30 and a_j = 0.1 j^-0.7. This is
    the algorithm, and is not corrected. A draw that is not finite is left out of the
    average and counted; a step that is not finite is rejected, and all its draws count.

    Args:
        num_steps: J ≥ 1, the moves.
        num_samples: M ≥ 1, the gradients averaged in one move; a pair is two.
        step_size: a_j, a positive number, or a schedule that is called with j = 0, 1, …
            (int32) for the paper's a_1, a_2, …: its c j^-α is
            `lambda j: c * (j + 1) ** -alpha`.
        smoothing: the variance of the draws z_m where it differs from τ.
        chunk_size: how many gradients run at once under `vmap`.
        antithetic: draw pairs y ± √τ ε, which cancel the part of ∇f that is odd in ε;
            False is the paper's plain sampling.
        axis_name: the bound axis whose members share the M draws; see `Sampler`.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        reduction: draw in the directions alone that the loss can see on its batch,
            where `reduction_report` finds them: faster, and
            exact, for the iterates have the same law.

    Returns:
        A `Sampler` for `heat`. Its info's `objective` and `standard_error` are those of
        F^H_τ(x_k), from the M draws of the first move, which are around x_k (with
        `smoothing`, of F^H at that variance); `effective_sample_size` is the number of
        draws that count, over all moves; `num_evaluations` is J M; the noise of the
        displacement is not estimated: NaN.

    Raises:
        ValueError: a count is not a positive integer; `step_size` or `smoothing` is not
            positive, an axis is not bound, or both are the same.
        TypeError: `value_fn` returns integers, which have no gradient.

    Example:
        On f(x) = x²/2 the step is -τ/(1 + τ) x, here -1/3 of x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.robbins_monro(100, 10, lambda j: 1 / (1 + j))
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, sampler, tau=0.5)
        >>> print(f"{step(jnp.array(3.0), jax.random.key(0)):.1f}")
        2.0

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 5.2, Algorithm 5.
    """
    num_steps = positive_count("num_steps", num_steps)
    positive_or_schedule("step_size", step_size)
    if smoothing is not None:
        positive("smoothing", smoothing)
    plan = Plan(
        positive_count("num_samples", num_samples),
        antithetic,
        optional_count("chunk_size", chunk_size),
    )

    def run(
        key: jax.Array,
        state: PyTree,
        space: Space,
        tau: jax.Array,
        beta: jax.Array,
    ) -> tuple[PyTree, PyTree, Info]:
        del beta  # heat has none
        dtype = compute_dtype(space.zeros)
        variance = tau if smoothing is None else smoothing

        def move(y: PyTree, j: jax.Array):
            found = mean_gradient(jax.random.fold_in(key, j), space, y, variance, plan)
            a = step_size(j) if callable(step_size) else step_size
            drift = optax.tree.add(y, scaled(found.mean(), tau))
            proposal = optax.tree.sub(y, scaled(drift, jnp.asarray(a, dtype)))
            accept = all_finite(proposal) & (found.moments.size > 0)
            failed = jnp.where(accept, found.moments.failed_fraction(), 1)
            return optax.tree.where(accept, proposal, y), (found.moments, failed)

        steps = jnp.arange(num_steps, dtype=jnp.int32)
        end, (moments, failed) = jax.lax.scan(move, space.zeros, steps)
        at_start = jax.tree.map(lambda leaf: leaf[0], moments)
        info = mean_info(at_start, num_steps * num_samples)._replace(
            effective_sample_size=moments.size.sum().astype(dtype),
            nonfinite_fraction=failed.mean(),
        )
        return space.lift(end), state, info

    return make_sampler(
        run,
        "robbins_monro",
        "heat",
        space_maker=space_maker(reduction),
        axes=make_axes(axis_name, data_axis_name),
        differentiable=True,
    )
