"""The space in which a sampler draws: displacements, and the loss seen from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lejax._internal.loss import DrawNumber, call, nth_batch
from lejax._internal.mesh_axes import Axes, mean_over, varying
from lejax._internal.random import standard_normals, translate
from lejax._internal.trees import (
    PyTree,
    compute_dtype,
    scaled,
    widen,
    zeros_alike,
)
from lejax._spaces.control_variate import ControlVariate, ExampleOutputs

# What a covariance keeps of Σ c uvᵀ, of leaves (n, ...) and coefficients (n,).
Products: TypeAlias = Callable[[PyTree, PyTree, jax.Array], PyTree]


class Space(NamedTuple):
    """The space in which a sampler draws, and the loss seen from there.

    Samplers know displacements u from x only, in the shapes of `zeros`; a change of
    coordinates is another maker of this tuple. It may leave out directions which the
    loss does not see, the complement.

    Attributes:
        origin: x, in at least float32.
        zeros: the displacement 0; its shapes and dtypes are those of the draws.
        noise: `noise(key, copies)`: draws of N(0, I) in these coordinates, on a leading
            axis, that differ by random signs.
        value_fn: `value_fn(u, j=0, sign=1.0)`: the loss at the displacement ±u, on the
            j-th of the inner batches in turn, or on the batch where there is but one;
            j is the number of the draw where each is evaluated once.
        value_and_grad: `value_and_grad(u, j=0)`: the loss at u, and its gradient.
        lift: a displacement in these coordinates as one of the parameters.
        lower: the converse, for a displacement that outlives one update.
        outside: the part of a displacement of the parameters that lies in the
            complement; None where there is none.
        axis_name: the axis whose members share the draws, if any.
        credit: what the examples of the batch see, where it is asked for and known.
        products: what of uuᵀ a covariance is to learn from, if one is.
    """

    origin: PyTree
    zeros: PyTree
    noise: Callable[[jax.Array, int], PyTree]
    value_fn: Callable[..., jax.Array]
    value_and_grad: Callable[..., tuple[jax.Array, PyTree]]
    lift: Callable[[PyTree], PyTree]
    lower: Callable[[PyTree], PyTree]
    outside: Callable[[PyTree], PyTree] | None
    axis_name: str | None = None
    credit: ControlVariate | None = None
    products: Products | None = None


def over_axes(space: Space, params: PyTree, axes: Axes) -> Space:
    """The same coordinates for the members of named axes.

    They were made at points that differ over the axes, as those will at which the loss
    is evaluated; the parameters themselves do not. The loss of a draw is the mean over
    the members that hold the data, before anything is made of it: weights are not
    linear in the loss.
    """

    def averaged(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        # The gradient of each member's own loss, whatever the rules of the axis say
        # of the gradient of a mean.
        return lambda u, *args, **kwargs: mean_over(
            evaluate(varying(u, axes.data), *args, **kwargs), axes.data
        )

    credit = space.credit
    if credit is not None:
        examine = credit.examine

        def examined(u: PyTree, **kwargs: Any) -> tuple[jax.Array, ExampleOutputs]:
            value, seen = examine(varying(u, axes.data), **kwargs)
            return mean_over(value, axes.data), seen

        credit = credit._replace(
            examine=examined,
            zeros=varying(credit.zeros, axes.data),
            data_axis_name=axes.data,
        )
    return space._replace(
        credit=credit,
        origin=widen(params),
        zeros=zeros_alike(space.zeros),
        value_fn=averaged(space.value_fn),
        value_and_grad=averaged(space.value_and_grad),
        axis_name=axes.samples,
    )


def null_space_noise(key: jax.Array, space: Space) -> PyTree:
    """A draw of N(0, I) in the complement, in the shapes of the parameters."""
    assert space.outside is not None
    noise = standard_normals(key, space.origin, 1)
    return space.outside(jax.tree.map(lambda leaf: leaf[0], noise))


def full_space(
    value_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    inner_batches: bool,
    data_axis_name: str | None = None,
) -> Space:
    """Every parameter moves: the coordinates are the parameters' own."""
    del data_axis_name  # and need no rows
    dtype = compute_dtype(params)
    origin = widen(params)
    zeros = zeros_alike(origin)

    def displaced(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> jax.Array:
        turn = nth_batch(batch, j) if inner_batches else batch
        if isinstance(batch, DrawNumber):
            turn = j
        value = call(value_fn, translate(params, scaled(displacement, sign)), turn)
        return jnp.asarray(value).astype(dtype)

    return Space(
        origin=origin,
        zeros=zeros,
        noise=lambda key, copies: standard_normals(key, zeros, copies),
        value_fn=displaced,
        value_and_grad=jax.value_and_grad(displaced),
        lift=lambda displacement: displacement,
        lower=lambda displacement: displacement,
        outside=None,
    )
