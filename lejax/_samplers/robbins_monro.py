"""Robbins-Monro for heat regularisation: Algorithm 5."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lejax._estimators.draws import Draws
from lejax._estimators.gradients import mean_gradient
from lejax._estimators.plan import Plan, make_units
from lejax._info import make_info
from lejax._internal.blocks import Blocks
from lejax._internal.checks import counts_of, positive, positive_or_schedule
from lejax._internal.trees import all_finite, compute_dtype
from lejax._internal.types import Scalar, ScalarOrSchedule
from lejax._samplers.langevin import at_steps
from lejax._samplers.sampler import Estimate, Given, ReducedSampler, Traits


@dataclasses.dataclass(frozen=True, repr=False)
class robbins_monro(ReducedSampler):
    """The implicit step of heat regularisation, by Robbins-Monro (Algorithm 5).

    Use it for Algorithm 2 of the paper, or if the explicit step of `pathwise` is too
    long. Do not use it if the loss has no useful gradient; see `score_function`. Its
    moves run one after another. It is a proximal point step on F^H, solved inexactly by
    SGD.

    The minimiser of KL(φ_{x,τ} ‖ q_{x_k,τ}) solves x = x_k - τ ∇F^H_τ(x). From y = x_k,

        y ← y - a_j [y - x_k + (τ/M) Σ_m ∇f(z_m)],   z_m ~ N(y, τI),   j = 1, …, J.

    Stopped early it returns part of the step: for a constant gradient the share
    1 - Π_j(1 - a_j), .485 for the paper's J = 30 and a_j = 0.1 j^-0.7. This is not
    corrected: raise the learning rate. A sample whose loss or gradient is not finite is
    left out of the average and counted. A move that is not finite is rejected, and all
    its samples count as failed.

    Args:
        num_steps: J ≥ 1, the number of moves.
        num_samples: M ≥ 1, the gradients averaged in one move. A pair counts as two.
        step_size: a_j, a positive number, or a schedule that is called with j = 0, 1, …
            (int32) for the paper's a_1, a_2, …. The paper's c j^-α is
            `lambda j: c * (j + 1) ** -alpha`.
        smoothing: the variance of the samples z_m, by default τ.
        chunk_size: how many gradients run at once under `vmap`.
        antithetic: draw pairs y ± √τ ε, which cancel the part of ∇f that is odd in ε.
            False is plain sampling, as in the paper.
        axis_name: the bound axis whose members share the M samples; see `Sampler`.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        reduction: draw only in the directions that the loss depends on for its batch,
            as listed by `reduction_report`. This is exact, and faster.

    Returns:
        A `Sampler` for `heat`. `objective` and `standard_error` in its info are of
        F^H_τ(x_k), or F^H at the variance `smoothing`, from the M samples of the first
        move. `effective_sample_size` is the number of finite samples of all moves, and
        `num_evaluations` is J M. `squared_error` and `signal` are NaN.

    Raises:
        ValueError: a count is not a positive integer, `step_size` or `smoothing` is not
            positive, an axis is not bound, both axes are equal, or the gradient of
            `value_fn` is identically zero.
        TypeError: `value_fn` returns integers, which have no gradient.

    Examples:
        On f(x) = x²/2 the step is -τ/(1 + τ) x, here -1/3 of x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.robbins_monro(100, 10, lambda j: 1 / (1 + j))
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, sampler, tau=0.5)
        >>> print(f"{step(jnp.array(3.0), jax.random.key(0)):.1f}")
        2.0

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 5.2, Algorithm 5.
    """

    num_steps: int
    num_samples: int
    step_size: ScalarOrSchedule
    _: dataclasses.KW_ONLY
    smoothing: Scalar | None = None
    chunk_size: int | None = None
    antithetic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        counts_of(self, num_steps=1, num_samples=1, chunk_size=1)
        positive_or_schedule("step_size", self.step_size)
        if self.smoothing is not None:
            positive("smoothing", self.smoothing)

    @property
    def traits(self) -> Traits:
        """Its capabilities and requirements."""
        return Traits("heat", needs_gradient=True)

    def in_space(self, given: Given) -> Estimate:
        """The last iterate."""
        space, tau = given.space, given.tau
        dtype = compute_dtype(space.zeros)
        variance = tau if self.smoothing is None else jnp.asarray(self.smoothing, dtype)
        plan = Plan(self.num_samples, self.antithetic, self.chunk_size)
        units = make_units(plan, space.zeros, self.axis_name, exact=space.exact)
        steps = jnp.arange(self.num_steps, dtype=jnp.int32)
        shares = at_steps(self.step_size, steps, dtype)

        def move(y: Blocks, step: tuple[jax.Array, jax.Array]) -> tuple[Blocks, Any]:
            j, share = step
            own = jax.random.fold_in(given.key, j)
            draws = Draws(own, space, jnp.sqrt(variance), units)
            found = mean_gradient(draws, y)
            proposal = jax.tree.map(
                lambda y, g: y - share.astype(y.dtype) * (y + tau.astype(y.dtype) * g),
                y,
                found.mean,
            )
            of_losses = found.of_losses
            accept = all_finite(proposal) & (of_losses.size > 0)
            failed = jnp.where(accept, of_losses.failed_fraction, 1)
            y = jax.tree.map(lambda new, old: jnp.where(accept, new, old), proposal, y)
            told = of_losses.objective, of_losses.standard_error, of_losses.size, failed
            return y, told

        end, told = jax.lax.scan(move, space.zeros, (steps, shares))
        objective, error, size, failed = told
        info = make_info(
            dtype,
            self.num_steps * self.num_samples,
            objective=objective[0],
            standard_error=error[0],
            effective_sample_size=size.sum(),
            nonfinite_fraction=failed.mean(),
        )
        return Estimate(end, given.state, info)
