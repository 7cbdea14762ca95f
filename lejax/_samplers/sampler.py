"""The interface of all samplers, and how they are run."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._info import Info, is_known, unknown
from lejax._internal.blocks import Blocks
from lejax._internal.checks import (
    float_leaves,
    positive,
    positive_or_schedule,
    typed_key,
)
from lejax._internal.mesh_axes import check_axes, check_bound, varying
from lejax._internal.trees import compute_dtype, inner
from lejax._internal.types import LossFn, PyTree, Scalar, ScalarOrSchedule
from lejax._spaces.reduced import reduced_space
from lejax._spaces.space import Space, full_space, over_data
from lejax._tracing.compiled import run_compiled
from lejax._tracing.loss import Loss, OutsideLoss, traced, unread

Regularization = Literal["local entropy", "heat"]


class Traits(NamedTuple):
    """The capabilities and requirements of a sampler.

    Attributes:
        regularization: the regularisation that it estimates.
        tells_noise: True if it may estimate `squared_error` and `signal`.
        tells_objective: True if it estimates `objective`.
        needs_gradient: True if it differentiates the loss.
        values_suffice: True if it needs only J losses, as `ask_tell` passes them.
        learns_covariance: True if `gaussian` can use it.
        weighs_by_beta: True if it has weights at the β that is passed.
        batches_take_turns: True if a batch is a stack of inner batches.
        reads_again: True if every device traces its own part of the loss.
        weighted_samples: J, if `effective_sample_size` counts the effective ones of J
            samples at the given τ and β; otherwise None.
    """

    regularization: Regularization
    tells_noise: bool = False
    tells_objective: bool = True
    needs_gradient: bool = False
    values_suffice: bool = False
    learns_covariance: bool = False
    weighs_by_beta: bool = False
    batches_take_turns: bool = False
    reads_again: bool = False
    weighted_samples: int | None = None


class Given(NamedTuple):
    """The inputs of an estimate.

    Attributes:
        key: of this estimate.
        state: the previous state.
        space: the coordinates, and the loss in them.
        tau: τ.
        beta: β.
        learns: `learns(u, v, c)`: Σ c uvᵀ as a covariance keeps it; None without one.
    """

    key: jax.Array
    state: PyTree
    space: Space
    tau: jax.Array
    beta: jax.Array
    learns: Any


class Estimate(NamedTuple):
    """The result of a sampler, in its coordinates.

    Attributes:
        displacement: the estimate of x_{k+1} - x_k, as blocks.
        state: the next state.
        info: its diagnostics; the noise is that of the displacement.
        beside: noise in the null space, to be added to the displacement, in the shapes
            of the parameters; None without.
        products: the sums for a covariance; None without one.
    """

    displacement: Blocks
    state: PyTree
    info: Info
    beside: PyTree = None
    products: PyTree = None


@dataclasses.dataclass(frozen=True, repr=False)
class Sampler:
    """A method to estimate the step of one regularisation: the type of all samplers.

    Make one with `importance`, `sgld` and so on, and pass it to `local_entropy`,
    `heat`, `gaussian`, `step_fn`, `value_and_grad` or `minimize`. Call `estimate` only
    if you write your own update. A sampler is a frozen dataclass: it is compared by its
    settings, hashable if they are, and changed by `dataclasses.replace`.

    For several devices, use `parallel`. Inside your own `jax.pmap`, `jax.shard_map` or
    `jax.vmap`, two settings of a sampler name the axes that are bound there. The
    members of `axis_name` share the samples, or the chains of `sgld`. Each makes its
    part, and the losses are gathered. All of them must hold the same parameters, batch
    and key. The members of `data_axis_name` hold equal parts of the batch, and the same
    values of everything else. f is the mean of their losses. The two axes must differ.

    Attributes:
        regularization: the regularisation it estimates, `"local entropy"` or `"heat"`.
        name: the name of its class; for `parallel`, the name of the wrapped sampler.

    Examples:
        The displacement of f(x) = x²/2 is -τ/(1 + τ) x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler, x = lejax.importance(20_000), jnp.array(3.0)
        >>> displacement, _, _ = sampler.estimate(
        ...     jax.random.key(0), (), x, value_fn=lambda x: x**2 / 2, tau=0.5
        ... )
        >>> print(sampler, sampler.regularization, f"{displacement:.1f}")
        importance(20000) local entropy -1.0
    """

    _: dataclasses.KW_ONLY
    axis_name: str | None = None
    data_axis_name: str | None = None

    @property
    def traits(self) -> Traits:
        """Its capabilities and requirements."""
        raise NotImplementedError

    @property
    def regularization(self) -> Regularization:
        """The regularisation that it estimates."""
        return self.traits.regularization

    @property
    def name(self) -> str:
        """The name of its class."""
        return type(self).__name__

    @property
    def axes(self) -> tuple[str | None, str | None]:
        """The axis that shares the draws, and the axis that splits the batch."""
        return self.axis_name, self.data_axis_name

    def __post_init__(self) -> None:
        check_axes(*self.axes)

    def __repr__(self) -> str:
        fields = sorted(dataclasses.fields(self), key=lambda one: one.kw_only is True)
        given = [
            f"{field.name}={value!r}" if field.kw_only else f"{value!r}"
            for field in fields
            if (value := getattr(self, field.name)) is not field.default
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def check(self, tau: Scalar) -> None:
        """Raise if the sampler cannot work at this τ."""

    def warn(self, tau: Scalar) -> None:
        """Warn of settings that diverge at many learning rates."""

    def init(self, params: PyTree) -> PyTree:
        """The state before the first estimate."""
        return self.first_state(float_leaves(params))

    def estimate(
        self,
        key: jax.Array,
        state: PyTree,
        params: PyTree,
        *,
        value_fn: LossFn,
        batch: PyTree = None,
        tau: Scalar,
        beta: Scalar = 1.0,
    ) -> tuple[PyTree, PyTree, Info]:
        """Estimate x_{k+1} - x_k once.

        Args:
            key: a typed key.
            state: from `init`, or from the previous estimate.
            params: x_k.
            value_fn: the loss, `value_fn(params, batch)`.
            batch: passed to the loss; None if it takes none.
            tau: τ, a variance.
            beta: β, an inverse temperature; 1 for heat.

        Returns:
            The displacement, in the shapes of `params` and at least float32, 0 if it
            is not finite; the next state; the `Info`.
        """
        typed_key(key)
        positive("tau", tau)
        check_smoothing(self, tau, beta)
        params = float_leaves(params)
        loss = self.loss(value_fn, params, batch)
        return run_compiled(
            _estimate,
            self,
            loss,
            *(params, key, state, tau, beta),
            differentiated=self.traits.needs_gradient,
            inline=any(self.axes),
        )

    def loss(
        self,
        value_fn: LossFn | Loss | OutsideLoss,
        params: PyTree,
        batch: PyTree,
        *,
        any_batch: bool = False,
        has_aux: bool = False,
    ) -> Loss | OutsideLoss:
        """The loss, traced at parameters that vary over the axes, as its samples do."""
        if isinstance(value_fn, OutsideLoss):
            if not self.traits.values_suffice or any(self.axes):
                raise ValueError(
                    "ask_tell needs a sampler that uses loss values only, without "
                    f"axes, got {self!r}; pass importance or score_function, and "
                    "evaluate the points in parallel yourself."
                )
            return value_fn
        if isinstance(value_fn, Loss):
            return value_fn
        if self.traits.reads_again and not has_aux:
            return unread(value_fn, batch)
        return traced(
            value_fn,
            self.varying(params),
            batch,
            inner_batches=self.traits.batches_take_turns,
            any_batch=any_batch,
            has_aux=has_aux,
            differentiable=self.traits.needs_gradient,
        )

    def run(
        self,
        key: jax.Array,
        state: PyTree,
        params: PyTree,
        loss: Loss | OutsideLoss,
        tau: Scalar,
        beta: Scalar,
        learns: Any = None,
    ) -> tuple[PyTree, PyTree, Info, PyTree]:
        """`estimate` for a traced loss, and the sums for a covariance.

        These are Σ c uuᵀ over all parameters, as `learns(u, v, c)` keeps it.
        """
        if isinstance(loss, OutsideLoss) or learns is not None:
            space = full_space(loss, params)
        else:
            space = self.space(loss, self.varying(params))
        if self.axes[1] is not None:
            space = over_data(space, params, self.axes[1])
        # Round τ and β once, so that everything is computed from the same numbers.
        dtype = compute_dtype(space.zeros)
        tau = jnp.asarray(tau, dtype)
        beta = self.beta_in_use(state, jnp.asarray(beta, dtype))
        found = self.in_space(Given(key, state, space, tau, beta, learns))
        blocks, info = found.displacement, found.info
        # A margin for the gradient, δ̂/(βτ), and for sums of many numbers in `lift`.
        size = sum(block.size for block in blocks)
        limit = jnp.finfo(dtype).max * jnp.minimum(beta * tau, 1) / max(size, 1)
        largest = [jnp.abs(block).max(initial=0).astype(dtype) for block in blocks]
        finite = functools.reduce(jnp.maximum, largest) < limit
        blocks = tuple(jnp.where(finite, block, 0) for block in blocks)
        displacement = space.lift(blocks)
        square = inner(blocks, blocks, dtype)
        if found.beside is not None:
            displacement = optax.tree.add(displacement, found.beside)
            square += inner(found.beside, found.beside, dtype)
        info = with_signal(info, square)._replace(
            effective_sample_size=jnp.where(finite, info.effective_sample_size, 0),
            tau_used=tau,
            beta_used=beta,
        )
        return displacement, found.state, info, found.products

    def varying(self, params: PyTree) -> PyTree:
        """The parameters, marked as varying over the axes, as displaced ones do."""
        if any(self.axes):
            check_bound(*self.axes)
        for name in filter(None, self.axes):
            params = varying(params, name)
        return params

    # Each sampler overrides some of these.

    def first_state(self, params: PyTree) -> PyTree:
        """The state before the first estimate; the parameters are arrays."""
        del params
        return ()

    def beta_in_use(self, state: PyTree, beta: jax.Array) -> jax.Array:
        """The β that the estimate uses, given the β that is passed."""
        del state
        return beta

    def space(self, loss: Loss, params: PyTree) -> Space:
        """The coordinates in which it draws."""
        raise NotImplementedError

    def in_space(self, given: Given) -> Estimate:
        """The estimate, in the given coordinates."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, repr=False)
class ReducedSampler(Sampler):
    """A sampler that draws only in the directions that the loss depends on."""

    _: dataclasses.KW_ONLY
    reduction: bool = True

    def space(self, loss: Loss, params: PyTree) -> Space:
        """The reduced space; with `reduction` off, the full space."""
        return reduced_space(
            loss, params, self.data_axis_name, reduction=self.reduction
        )


def _estimate(
    sampler: Sampler,
    loss: Loss | OutsideLoss,
    params: PyTree,
    key: jax.Array,
    state: PyTree,
    tau: Scalar,
    beta: Scalar,
) -> tuple[PyTree, PyTree, Info]:
    return sampler.run(key, state, params, loss, tau, beta)[:3]


def check_smoothing(sampler: Sampler, tau: Scalar, beta: ScalarOrSchedule) -> None:
    """Raise if the sampler cannot use this τ or β, as far as they are known."""
    sampler.check(tau)
    known_beta = positive_or_schedule("beta", beta)
    if sampler.regularization == "heat" and known_beta != 1:
        raise ValueError(
            f"beta must be 1 for {sampler.name}, got {beta!r}: heat regularisation has "
            "no inverse temperature; leave beta out."
        )


def with_signal(info: Info, square: jax.Array) -> Info:
    """The info with `signal` and its standard error.

    `square` is |δ̂|². `info.signal_standard_error` is still that of |δ̂|² - V.
    """
    moved = square > 0

    def of_square(part: jax.Array, source: jax.Array) -> jax.Array:
        known = moved & is_known(source)
        return jnp.where(known, part / jnp.where(moved, square, 1), unknown(part.dtype))

    noise, error = info.squared_error, info.signal_standard_error
    return info._replace(
        signal=of_square(square - noise, noise),
        signal_standard_error=of_square(error, error),
    )
