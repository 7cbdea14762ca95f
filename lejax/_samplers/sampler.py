"""What a sampler is, and the one door through which all of them are run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lejax._info import Info, is_known, unknown
from lejax._internal.checks import float_leaves, positive, typed_key
from lejax._internal.loss import DrawNumber, check_objective, first_batch
from lejax._internal.mesh_axes import Axes, check_bound, make_axes, varying
from lejax._internal.trees import compute_dtype, inner
from lejax._internal.types import LossFn, PyTree, Scalar
from lejax._spaces.space import Products, Space, full_space, over_axes

Regularization = Literal["local entropy", "heat"]


class Sampler(NamedTuple):
    """A way to estimate the step of one regularisation: pure functions and their name.

    A sampler is not callable itself: it goes to `local_entropy`, `heat`, `step_fn` or
    `value_and_grad`, or is run by hand.

    Over several devices `parallel` shares its work. Under a `jax.pmap`, `jax.shard_map`
    or `jax.vmap` of one's own, two arguments of the samplers name the axes that are
    bound there. The members of `axis_name` share the draws, or the chains of `sgld`:
    each makes its part, and the sums are merged. All of them must hold the same
    parameters, batch and key. The members of `data_axis_name` hold equal parts of the
    batch, and the same of all else: f is the mean of theirs. The two must differ.

    Attributes:
        init: `init(params) -> state`.
        step: `step(key, state, params, *, value_fn, batch=None, tau, beta=1.0) ->
            (displacement, state, info)`: the estimate of x_{k+1} - x_k, of the shapes
            of `params` and at least float32; `tau` is a variance, `beta` an inverse
            temperature (1 for heat).
        name: what made it.
        regularization: what it samples, `"local entropy"` or `"heat"`.
        check: `check(tau)` raises where the sampler cannot work at this τ.
        inner_batches: whether a batch is a stack of batches that take turns.
        over: `over(axis_name, data_axis_name)` is the same sampler for the members of
            named axes, as if it had been made with these arguments.
        learning: `learning(products)` is the same sampler, which draws every parameter
            and whose info also tells what a covariance learns from: E_q uuᵀ - I of
            local entropy, E u∇f(X)ᵀ of heat, u = X - x at τ = 1, as `products` has
            them. None where it cannot.
        knows_noise: whether its info may tell `squared_error` and `signal`.
        num_samples: the J of which `effective_sample_size` tells how many count at the
            τ and β that are passed; None where it tells something else, or nothing.

    Example:
        By hand: the displacement of f(x) = x²/2 is -τ/(1 + τ) x.

        >>> import jax, jax.numpy as jnp, lejax
        >>> sampler, x = lejax.importance(20_000), jnp.array(3.0)
        >>> displacement, _, _ = sampler.step(
        ...     jax.random.key(0), (), x, value_fn=lambda x: x**2 / 2, tau=0.5
        ... )
        >>> print(sampler.name, sampler.regularization, f"{displacement:.1f}")
        importance local entropy -1.0
    """

    init: Callable[[PyTree], PyTree]
    step: Callable[..., tuple[PyTree, PyTree, Info]]
    name: str
    regularization: Regularization
    check: Callable[[float], None]
    inner_batches: bool
    over: Callable[[str | None, str | None], Sampler]
    knows_noise: bool
    num_samples: int | None = None
    learning: Callable[[Products], Sampler] | None = None


def stateless(params: PyTree, axes: Axes) -> tuple[()]:
    """The `init` of a sampler that remembers nothing."""
    del params, axes
    return ()


def any_tau(tau: float) -> None:
    """The `check` of a sampler that works at every τ."""
    del tau


def as_passed(state: PyTree, beta: jax.Array) -> jax.Array:
    """The `beta_in_use` of a sampler that leaves β to its caller."""
    del state
    return beta


def make_sampler(
    run: Callable[..., tuple[PyTree, PyTree, Info]],
    name: str,
    regularization: Regularization,
    *,
    axes: Axes,
    init: Callable[[PyTree, Axes], PyTree] = stateless,
    check: Callable[[float], None] = any_tau,
    space_maker: Callable[..., Space],
    differentiable: bool = False,
    inner_batches: bool = False,
    knows_noise: bool = False,
    num_samples: int | None = None,
    beta_in_use: Callable[[PyTree, jax.Array], jax.Array] = as_passed,
    learns: bool = False,
    numbers: bool = False,
    products: Products | None = None,
) -> Sampler:
    """A sampler from `run(key, state, space, tau, beta)`.

    `run` works in the coordinates `space`, which `space_maker` makes, and lifts the
    displacement that it returns; its β is that of `beta_in_use(state, beta)`. This is
    the one place where arguments are checked.
    """

    again = functools.partial(
        make_sampler,
        run,
        name,
        regularization,
        init=init,
        check=check,
        differentiable=differentiable,
        inner_batches=inner_batches,
        knows_noise=knows_noise,
        num_samples=num_samples,
        beta_in_use=beta_in_use,
        learns=learns,
        numbers=numbers,
    )

    def over(axis_name: str | None, data_axis_name: str | None) -> Sampler:
        axes = make_axes(axis_name, data_axis_name)
        return again(axes=axes, space_maker=space_maker, products=products)

    def learning(products: Products) -> Sampler:
        return again(axes=axes, space_maker=full_space, products=products)

    def checked_init(params: PyTree) -> PyTree:
        return init(float_leaves(params), axes)

    def step(
        key: jax.Array,
        state: PyTree,
        params: PyTree,
        *,
        value_fn: LossFn,
        batch: PyTree = None,
        tau: Scalar,
        beta: Scalar = 1.0,
    ) -> tuple[PyTree, PyTree, Info]:
        typed_key(key)
        numbered = isinstance(batch, DrawNumber)
        if numbered and (any(axes) or not numbers):
            over_what = " over an axis" if numbers else ""
            raise ValueError(
                f"ask_tell needs a sampler of losses alone, on one device, got {name}"
                f"{over_what}; pass importance or score_function, and let what is "
                "outside be parallel."
            )
        check_bound(axes)
        check_smoothing(sampler, positive("tau", tau), beta)
        params = float_leaves(params)
        first = first_batch(batch) if inner_batches else batch
        check_objective(value_fn, params, first, differentiable=differentiable)
        # The loss is read as it will be run: at points that differ over the axes.
        read_at = varying(varying(params, axes.samples), axes.data)
        make = full_space if numbered else space_maker
        space = make(value_fn, read_at, batch, inner_batches, axes.data)
        space = over_axes(space, params, axes)._replace(products=products)
        # One rounding of τ and β for all that is made of them.
        dtype = compute_dtype(space.zeros)
        tau = jnp.asarray(tau, dtype)
        beta = beta_in_use(state, jnp.asarray(beta, dtype))
        displacement, state, info = run(key, state, space, tau, beta)
        info = with_signal(info, displacement)
        info = info._replace(tau_used=tau, beta_used=beta)
        return displacement, state, info

    sampler = Sampler(
        checked_init,
        step,
        name,
        regularization,
        check,
        inner_batches,
        over,
        knows_noise,
        num_samples,
        learning if learns else None,
    )
    return sampler


def check_smoothing(sampler: Sampler, tau: float, beta: Scalar) -> None:
    """Refuse a τ or β that the sampler cannot serve; a τ of NaN is not known."""
    if not math.isnan(tau):
        sampler.check(tau)
    known_beta = positive("beta", beta)
    if sampler.regularization == "heat" and known_beta != 1:
        raise ValueError(
            f"beta must be 1 for {sampler.name}, got {beta!r}: heat regularisation has "
            "no inverse temperature; leave beta out."
        )


def with_signal(info: Info, displacement: PyTree) -> Info:
    """The info with the share of the displacement that is no noise, and its error."""
    dtype = info.squared_error.dtype
    square = inner(displacement, displacement, dtype)
    moved = square > 0

    def of_square(part: jax.Array, source: jax.Array) -> jax.Array:
        known = moved & is_known(source)
        return jnp.where(known, part / jnp.where(moved, square, 1), unknown(dtype))

    return info._replace(
        signal=of_square(square - info.squared_error, info.squared_error),
        signal_error=of_square(info.signal_error, info.signal_error),
    )
