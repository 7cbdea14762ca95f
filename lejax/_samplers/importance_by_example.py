"""Importance sampling for the mean of the local entropies of the examples."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lejax._estimators.draws import Chunk, Draws, evaluate
from lejax._estimators.losses import by_unit
from lejax._estimators.plan import Plan, default_signs, make_units
from lejax._estimators.weights import Weights, error_of_sum, importance_weights
from lejax._info import TRUSTED_SAMPLE_SIZE, Info, make_info, unknown
from lejax._internal.blocks import Blocks
from lejax._internal.checks import counts_of
from lejax._internal.mesh_axes import mean_over
from lejax._internal.types import PyTree
from lejax._samplers.sampler import Estimate, Given, Sampler, Traits
from lejax._spaces.per_example_noise import add_per_example, per_example_space
from lejax._spaces.space import Space
from lejax._tracing.loss import Loss


@dataclasses.dataclass(frozen=True, repr=False)
class importance_by_example(Sampler):
    """Importance sampling for the mean of the local entropies of the examples.

    Use it to train networks by forward passes only: each example has its own weights,
    which do not degenerate with the size of the network. Do not use it if the loss is
    not a mean over a batch; see `importance`. The limit β → 0 is `score_function`, at
    half the price. Node perturbation is a related method.

    For a loss f = (1/B) Σᵢ fᵢ over the examples of a batch it smooths

        G_{τ,β}(x) = -(1/B) Σᵢ (1/β) log E_φ exp(-β fᵢ(X)),   φ = N(x, τI),

    which is not F_{τ,β}: the exponent of F is the mean of all fᵢ. By the inequalities
    of Hölder and Jensen

        G_{τ,β} ≤ F_{τ,β} ≤ F^H_τ,

    with equality as β → 0; G = F on a batch of one example. G is a mean over examples,
    so minibatches estimate it without bias for any β. J samples leave a bias of order
    1/J. The displacement is -βτ ∇G = (1/B) Σᵢ E_qᵢ[X] - x, with qᵢ ∝ exp(-βfᵢ) φ.

    Each example has its own draws in each dense layer, in the directions of its own
    inputs, as in `score_function`. Other leaves have one draw for all examples. The
    examples lie along the first axis of the batch. Terms of the loss outside the mean,
    such as a penalty, are part of every fᵢ.

    Args:
        num_samples: J ≥ 2, the samples of each example. The loss is evaluated twice at
            each: once for the weights, once to apply them.
        chunk_size: how many evaluations run at once under `vmap`. Memory grows with it,
            not with J.
        antithetic: draw pairs x ± √τ ε. Weights are centred either way. Single samples
            need twice the random numbers, and have less noise if losses are nearly
            linear.
        axis_name: the bound axis whose members share the J samples; see `Sampler`.
        data_axis_name: the bound axis that the batch is split over; see `Sampler`.
        signs_per_draw: the most samples, or pairs, that share one draw under random
            signs; see `importance`.

    Returns:
        A `Sampler` for `local_entropy`. `effective_sample_size` in its info is the
        harmonic mean over the examples; below 20, the standard error is NaN.
        `squared_error` and `signal` are NaN.

    Raises:
        ValueError: `num_samples` is not an integer of at least 2 (centring uses up one
            draw), `chunk_size` or `signs_per_draw` is not a positive integer,
            `signs_per_draw` is above 32, an axis is not bound, or both axes are equal.
            In use: the loss is not a sum over the examples, or depends on no dense
            layer through this sum only.

    Examples:
        Two examples with fᵢ = (w - yᵢ)²/2 each pull by -τ/(1 + τ) (w - yᵢ):

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler = lejax.importance_by_example(10_000)
        >>> def loss(w, batch):
        ...     x, y = batch
        ...     return jnp.mean((x @ w - y) ** 2) / 2
        >>> step = lejax.step_fn(loss, sampler, tau=0.5)
        >>> batch = jnp.ones((2, 1)), jnp.array([[1.0], [3.0]])
        >>> print(f"{step(jnp.array([[5.0]]), jax.random.key(0), batch).item():.1f}")
        4.0

    References:
        The objective is this library's; for its relative see Garcia Trillos, Kaplan,
        Sanz-Alonso, *Variational characterizations of local entropy and heat
        regularization in deep learning*, section 5.1.2, on minibatches.
    """

    num_samples: int
    _: dataclasses.KW_ONLY
    chunk_size: int | None = None
    antithetic: bool = True
    signs_per_draw: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        counts_of(self, num_samples=2, chunk_size=1, signs_per_draw=1)

    @property
    def traits(self) -> Traits:
        """Its capabilities and requirements."""
        return Traits("local entropy", weighted_samples=self.num_samples)

    def space(self, loss: Loss, params: PyTree) -> Space:
        """The space of per-example noise; raises if the loss mixes the examples."""
        space = per_example_space(loss, params, self.data_axis_name)
        control = space.control_variate
        if control is None or control.baselines.size not in loss.batch_sizes:
            raise ValueError(
                "value_fn does not separate the examples of the batch: it must be a "
                "sum over them, and depend on some dense layer through that sum alone; "
                "call lejax.reduction_report for the reason, or use lejax.importance, "
                "which smooths any loss."
            )
        return space

    def in_space(self, given: Given) -> Estimate:
        """The losses of each example, their weights, and the weighted draws."""
        space, beta = given.space, given.beta
        control = space.control_variate
        assert control is not None
        count, data = control.baselines.size, control.data_axis_name
        pairs = self.num_samples // 2 if self.antithetic else self.num_samples
        signs = self.signs_per_draw or default_signs(space.zeros, pairs, count)
        units = make_units(
            Plan(self.num_samples, self.antithetic, self.chunk_size, signs),
            space.zeros,
            self.axis_name,
            exact=space.exact,
        )
        draws = Draws(given.key, space, jnp.sqrt(given.tau), units)

        def losses(u: Blocks, sign: Any) -> jax.Array:
            _, examples = control.examine(u, sign, True)
            # Terms outside the sum are part of the loss of every example.
            return count * examples.losses + mean_over(examples.rest_of_loss, data)

        first = evaluate(draws, losses, by_unit, keep=True)
        flat = units.all_of(first.values)
        weights = jax.vmap(lambda own: importance_weights(own, units, beta), 1)(flat)
        centred = jax.vmap(lambda own: own.centred(units), out_axes=1)(weights) / count
        of_all = mean_over(centred.sum(1), data)

        def moved(total: PyTree, chunk: Chunk) -> tuple[PyTree, tuple[()]]:
            own, common = (jnp.moveaxis(leaf, 1, 0) for leaf in chunk.beside)
            noises = jax.vmap(jax.vmap(space.tree))(chunk.u)[0]
            either = (chunk.signs[..., None] * common).sum(0)
            sums, others = total
            others = tuple(
                block + jnp.tensordot(either.astype(u.dtype), u, 2)
                for block, u in zip(others, chunk.u[1:], strict=True)
            )
            sums = add_per_example(
                control, sums, noises, chunk.signs, own, chunk.outputs
            )
            return (sums, others), ()

        found = evaluate(
            draws,
            lambda u, sign: control.examine(u, sign)[1].bases,
            moved,
            (control.no_sums(), space.zeros[1:]),
            beside=list(zip(units.own(centred), units.own(of_all), strict=True)),
            known=first.noise,
        )
        sums, others = jax.tree.map(lambda leaf: leaf.sum(0), found.sums)
        total = control.as_blocks(sums)
        if self.axis_name is not None:
            total, others = jax.lax.psum((total, others), self.axis_name)
        total = mean_over(total, data)
        if others:
            leaves = enumerate(space.tree((space.zeros[0], *others))[1])
            parts = {place: leaf for place, leaf in leaves if leaf is not None}
            total = control.with_parts(total, parts)
        error = error_of_sum(of_all, of_all.sum() / self.num_samples, units, 1 / beta)
        return Estimate(total, given.state, self.info(weights, error, data))

    def info(self, weights: Weights, error: jax.Array, data: str | None) -> Info:
        """The info of an update."""
        dtype = weights.shares.dtype
        some = weights.effective_sample_size > 0
        # An example whose draws all failed counts as one effective sample.
        square = 1 / jnp.where(some, weights.effective_sample_size, 1)
        any_weight, objective, square, failed = mean_over(
            (
                some.any().astype(dtype),
                weights.free_energy.mean(),
                square.mean(),
                weights.failed_fraction.mean(),
            ),
            data,
        )
        effective = jnp.where(any_weight > 0, 1 / square, 0)
        return make_info(
            dtype,
            2 * self.num_samples,
            objective=objective,
            standard_error=jnp.where(
                effective < TRUSTED_SAMPLE_SIZE, unknown(dtype), error
            ),
            effective_sample_size=effective,
            nonfinite_fraction=failed,
        )
