"""The gradient of the heat-regularised loss as an average of gradients."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from lejax._estimators.draws import Draws
from lejax._estimators.gradients import curvature, mean_gradient
from lejax._estimators.plan import Plan, make_units
from lejax._internal.checks import counts_of
from lejax._internal.trees import scaled
from lejax._samplers.sampler import Estimate, Given, ReducedSampler, Traits


@dataclasses.dataclass(frozen=True, repr=False)
class pathwise(ReducedSampler):
    """The gradient of the heat-regularised loss as an average of gradients.

    Use it for heat if the loss has a gradient; one pair is enough to begin with. Do not
    use it for an error rate, whose gradient is zero; see `score_function`. It is the
    reparameterisation gradient of variational inference, and training with weight
    noise; SAM takes the worst perturbation instead.

        ∇F^H_τ(x) = E_φ ∇f(X) ≈ (1/J) Σ_j ∇f(X_j),   X_j ~ φ = N(x, τI).

    The displacement is -τ ∇F^H: an explicit step, while `robbins_monro` (Algorithm 2)
    takes an implicit one. A sample whose loss or gradient is not finite is left out and
    counted. The average is then conditional on finite samples.

    Args:
        num_samples: J ≥ 1, the evaluations of ∇f in one update. A pair counts as two.
        chunk_size: how many evaluations run at once under `vmap`. Memory grows with it,
            not with J.
        antithetic: draw pairs x ± √τ ε, which cancel the part of ∇f that is odd in ε.
        axis_name: the bound axis whose members share the J samples; see `Sampler`.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        reduction: draw only in the directions that the loss depends on for its batch,
            as listed by `reduction_report`. This is exact, and faster.

    Returns:
        A `Sampler` for `heat`. `effective_sample_size` in its info is the number of
        finite samples.

    Raises:
        ValueError: `num_samples` or `chunk_size` is not a positive integer, an axis is
            not bound, both axes are equal, or the gradient of `value_fn` is identically
            zero.
        TypeError: `value_fn` returns integers, which have no gradient.

    Examples:
        On f(x) = x²/2 the step is -τ x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, lejax.pathwise(2), tau=0.5)
        >>> print(step(jnp.array(3.0), jax.random.key(0)))
        1.5

    References:
        Kingma, Welling, *Auto-encoding variational Bayes* (the pathwise derivative);
        Garcia Trillos, Kaplan, Sanz-Alonso, end of section 5.2.
    """

    num_samples: int
    _: dataclasses.KW_ONLY
    chunk_size: int | None = None
    antithetic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        counts_of(self, num_samples=1, chunk_size=1)

    @property
    def traits(self) -> Traits:
        """Its capabilities and requirements."""
        return Traits(
            "heat", tells_noise=True, needs_gradient=True, learns_covariance=True
        )

    def in_space(self, given: Given) -> Estimate:
        """The mean of the gradients, times -τ."""
        space, tau, learns = given.space, given.tau, given.learns
        plan = Plan(self.num_samples, self.antithetic, self.chunk_size)
        units = make_units(plan, space.zeros, self.axis_name, exact=space.exact)
        draws = Draws(given.key, space, jnp.sqrt(tau), units)
        found = mean_gradient(draws, space.zeros, learns)
        error = found.squared_error(tau)
        info = found.of_losses.info(self.num_samples, squared_error=error)
        products = None if learns is None else curvature(found, space, learns)
        return Estimate(scaled(found.mean, -tau), given.state, info, None, products)
