"""The gradient of the heat-regularised loss, from loss values only."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from lejax._estimators.draws import Chunk, Draws, combine, evaluate
from lejax._estimators.losses import losses_of
from lejax._estimators.plan import NUM_GROUPS, Plan, default_signs, make_units
from lejax._estimators.units import Units
from lejax._estimators.weights import Average, average, noise_of_sum
from lejax._internal.blocks import Blocks
from lejax._internal.checks import counts_of
from lejax._internal.mesh_axes import mean_over, members, varying
from lejax._internal.random import Noise
from lejax._internal.trees import compute_dtype, inner, scaled
from lejax._internal.types import PyTree
from lejax._samplers.sampler import Estimate, Given, ReducedSampler, Traits
from lejax._spaces.per_example_noise import add_per_example, per_example_space
from lejax._spaces.reduced import reduced_space
from lejax._spaces.space import Space
from lejax._tracing.loss import Loss


@dataclasses.dataclass(frozen=True, repr=False)
class score_function(ReducedSampler):
    """The gradient of the heat-regularised loss, from loss values only.

    Use it for heat if the loss has no useful gradient, or to train networks by forward
    passes only. Do not use it if back-propagation is cheap: `pathwise` usually needs
    far fewer samples. It is REINFORCE with a baseline. Without `reduction` and `credit`
    it is OpenES with σ = √τ and no fitness shaping.

        ∇F^H_τ(x) = E_φ[(f(X) - b)(X - x)] / τ = Cov_φ(f(X), X) / τ,   φ = N(x, τI).

    The baseline b is the mean of the losses. It cancels in antithetic pairs; unpaired
    samples lose one degree of freedom to it. So the estimate is unbiased for every J.
    The displacement is -τ ∇F^H. A sample whose loss is not finite is left out and
    counted. The estimate is then the gradient of the average over finite samples.

    Args:
        num_samples: J ≥ 2, the evaluations of f in one update. A pair counts as two.
        chunk_size: how many evaluations run at once under `vmap`. Memory grows with it,
            not with J.
        antithetic: draw pairs x ± √τ ε, which cancel the part of f that is even in ε.
        axis_name: the bound axis whose members share the J samples; see `Sampler`.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        signs_per_draw: the most samples, or pairs, that share one draw under random
            signs; see `importance`. The default is min(10, d/100, J/60, 2²²/d) for
            pairs, with J/30 for single samples.
        reduction: draw only in the directions that the loss depends on for its batch,
            as listed by `reduction_report`. This is exact, faster and less noisy.
        credit: draw separately for each example of the batch, in the layers with credit
            by example that `reduction_report` lists. With f = Σᵢ sᵢ and inputs hᵢ

                yᵢ = hᵢᵀ W + √τ |hᵢ| ξᵢ,
                ∇_W F^H = E Σᵢ (sᵢ - sᵢ(x)) hᵢ ξᵢᵀ / (√τ |hᵢ|).

            This is exact for F^H, with far less noise, and costs one evaluation, at x.
            Other leaves have one draw for all examples: turn credit off if they hold
            most of the parameters. If samples fail, the baselines sᵢ(x) add a bias.

    Returns:
        A `Sampler` for `heat`. `effective_sample_size` in its info is the number of
        finite samples.

    Raises:
        ValueError: `num_samples` is not an integer of at least 2 (the baseline uses up
            one draw), `chunk_size` or `signs_per_draw` is not a positive integer,
            `signs_per_draw` is above 32, an axis is not bound, or both axes are equal.

    Examples:
        On f(x) = x²/2 the step is -τ x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.score_function(10_000)
        >>> step = lejax.step_fn(lambda x: 0.5 * x**2, sampler, tau=0.5)
        >>> print(f"{step(jnp.array(3.0), jax.random.key(0)):.1f}")
        1.5

    References:
        Williams, *Simple statistical gradient-following algorithms for connectionist
        reinforcement learning* (score function and baseline).
    """

    num_samples: int
    _: dataclasses.KW_ONLY
    chunk_size: int | None = None
    antithetic: bool = True
    signs_per_draw: int | None = None
    credit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        counts_of(self, num_samples=2, chunk_size=1, signs_per_draw=1)

    @property
    def traits(self) -> Traits:
        """Its capabilities and requirements."""
        return Traits("heat", tells_noise=True, values_suffice=True)

    def space(self, loss: Loss, params: PyTree) -> Space:
        """The space of per-example noise, or the reduced space."""
        make = per_example_space if self.credit else reduced_space
        return make(loss, params, self.data_axis_name, reduction=self.reduction)

    def in_space(self, given: Given) -> Estimate:
        """The losses, their mean, and the draws weighted by centred losses."""
        space, state = given.space, given.state
        control = space.control_variate
        pairs = self.num_samples // 2 if self.antithetic else self.num_samples
        examples = 1 if control is None else control.baselines.size
        signs = self.signs_per_draw or default_signs(space.zeros, pairs, examples)
        units = make_units(
            Plan(self.num_samples, self.antithetic, self.chunk_size, signs),
            space.zeros,
            self.axis_name,
            least_chunks=1 if control is None else NUM_GROUPS,
            exact=space.exact,
        )
        draws = Draws(given.key, space, jnp.sqrt(given.tau), units)
        if control is not None:
            return _by_example(draws, state, self.num_samples)
        found = losses_of(draws)
        of_losses = average(units.all_of(found.values), units)
        total, error = _weighed(draws, of_losses, found.noise)
        info = of_losses.info(self.num_samples, squared_error=error)
        return Estimate(total, state, info)


def _factor(of_losses: Average, units: Units) -> jax.Array:
    """-1/(J - p), with p the share of unpaired draws.

    These lose p degrees of freedom to the baseline, which cancels in pairs.
    """
    size, dtype = of_losses.size, of_losses.centred.dtype
    unpaired = jnp.abs(units.signed(of_losses.counts.astype(dtype))).sum()
    degrees = size - unpaired / jnp.maximum(size, 1)
    return jnp.where(degrees > 0, -1 / jnp.where(degrees > 0, degrees, 1), 0)


def _by_example(draws: Draws, state: PyTree, num_samples: int) -> Estimate:
    """The estimate from per-example noise, weighted by the examples' own losses."""
    space, units, control = draws.space, draws.units, draws.space.control_variate
    assert control is not None
    data, dtype = control.data_axis_name, compute_dtype(space.zeros)

    def absorb(total: PyTree, chunk: Chunk) -> tuple[PyTree, PyTree]:
        values, examples = chunk.outputs
        counts = jnp.isfinite(values)
        counts = counts if chunk.real is None else counts & chunk.real
        losses = jnp.where(counts[..., None], examples.losses - control.baselines, 0)
        noises = jax.vmap(jax.vmap(space.tree))(chunk.u)[0]
        sums = add_per_example(
            control, control.no_sums(), noises, chunk.signs, losses, examples.bases
        )
        size = jnp.square(counts.sum().astype(dtype))
        square = control.squared_norm(sums).astype(dtype)
        added = optax.tree.add(total, (sums, square, size))
        return added, jnp.moveaxis(values, 0, 1)

    none = jnp.zeros((), dtype)
    zeros = control.no_sums(), varying(none, data), none
    found = evaluate(draws, control.examine, absorb, zeros)
    sums, square, sizes = jax.tree.map(lambda leaf: leaf.sum(0), found.sums)
    total = control.as_blocks(sums)
    if units.axis_name is not None:
        total, square, sizes = jax.lax.psum((total, square, sizes), units.axis_name)
    of_losses = average(units.all_of(found.values), units)
    each = -1 / jnp.maximum(of_losses.size, 1)
    total = scaled(total, each)
    # From chunks of draws. The members of a data axis hold other examples, with
    # independent draws.
    error = noise_of_sum(square * each**2, inner(total, total, dtype), sizes * each**2)
    error = error if data is None else mean_over(error, data) / members(data)
    total = mean_over(total, data)
    if len(space.zeros) > 1:
        moved, of_others = _of_others(draws, of_losses)
        total, error = control.with_parts(total, moved), error + of_others
    info = of_losses.info(num_samples + 1, squared_error=error)
    return Estimate(total, state, info)


def _of_others(
    draws: Draws, of_losses: Average
) -> tuple[dict[int, jax.Array], jax.Array]:
    """The displacement of the leaves that are drawn once for all, and its noise."""
    space = draws.space

    def noise(key: jax.Array, copies: int) -> Noise:
        drawn = space.noise(key, copies)
        return Noise(drawn.normals[1:], drawn.words and drawn.words[1:])

    zeros = space.zeros[1:]
    draws = draws._replace(space=space._replace(zeros=zeros, noise=noise))
    total, square = _weighed(draws, of_losses, [None] * len(draws.units.parts))
    leaves = space.tree((space.zeros[0], *total))[1]
    parts = {place: leaf for place, leaf in enumerate(leaves) if leaf is not None}
    return parts, square


def _weighed(
    draws: Draws, of_losses: Average, noise: list[Noise | None]
) -> tuple[Blocks, jax.Array]:
    """The draws weighted by centred losses, and the noise of their sum."""
    units = draws.units
    combined = combine(draws, noise, of_losses.centred * _factor(of_losses, units))
    total = jax.tree.map(lambda block: block.sum(0), combined.groups)
    square = combined.square
    if units.axis_name is not None:
        total, square = jax.lax.psum((total, square), units.axis_name)
    length = inner(total, total, square.dtype)
    return total, noise_of_sum(square, length, of_losses.shares)
