"""The space in which a sampler draws: its coordinates, and the loss in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lejax._internal.loss import DrawNumber, call, nth_batch
from lejax._internal.mesh_axes import Axes, mean_over, varying
from lejax._internal.random import standard_normals, translate
from lejax._internal.trees import compute_dtype, scaled, widen, zeros_alike
from lejax._internal.types import PyTree
from lejax._spaces.control_variate import ControlVariate, ExampleOutputs

# The part of Σ c uvᵀ that a covariance keeps, for leaves (n, ...), coefficients (n,).
Products: TypeAlias = Callable[[PyTree, PyTree, jax.Array], PyTree]


class Space(NamedTuple):
    """The coordinates in which a sampler draws, and the loss in them.

    A sampler works with displacements u from x, in the shapes of `zeros`. Other
    coordinates are another maker of this tuple. They may leave out the null space:
    directions in which the loss is constant.

    Attributes:
        origin: x, in at least float32.
        zeros: the displacement 0, with the shapes and dtypes of a draw.
        noise: `noise(key, copies)`: draws of N(0, I) in these coordinates, on a leading
            axis, that differ by random signs.
        value_fn: `value_fn(u, j=0, sign=1.0)`: the loss at the displacement ±u. With
            inner batches it is that on the j-th of them, in turn. If each draw is
            evaluated once, j is the number of the draw.
        value_and_grad: `value_and_grad(u, j=0)`: the loss at u, and its gradient.
        lift: a displacement in these coordinates as one of the parameters.
        lower: the converse, for a displacement that outlives one update.
        to_null_space: the projection of a displacement of the parameters onto the null
            space; None if no null space is left out.
        axis_name: the axis whose members share the draws, if any.
        control_variate: the per-example control variate, if it is asked for and exists.
        products: the part of uuᵀ that a covariance learns from, if one does.
    """

    origin: PyTree
    zeros: PyTree
    noise: Callable[[jax.Array, int], PyTree]
    value_fn: Callable[..., jax.Array]
    value_and_grad: Callable[..., tuple[jax.Array, PyTree]]
    lift: Callable[[PyTree], PyTree]
    lower: Callable[[PyTree], PyTree]
    to_null_space: Callable[[PyTree], PyTree] | None
    axis_name: str | None = None
    control_variate: ControlVariate | None = None
    products: Products | None = None


def over_axes(space: Space, params: PyTree, axes: Axes) -> Space:
    """The same coordinates for the members of named axes.

    `space` was made at parameters that vary over the axes, as displaced parameters do;
    `params` do not vary. The loss of a draw is the mean over the members that hold the
    data. It is taken first, as weights are not linear in the loss.
    """

    def averaged(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        # The mean is outside of `evaluate`, so a gradient is that of a member's own
        # loss and does not depend on the axis's rule for the gradient of a mean.
        return lambda u, *args, **kwargs: mean_over(
            evaluate(varying(u, axes.data), *args, **kwargs), axes.data
        )

    control_variate = space.control_variate
    if control_variate is not None:
        examine = control_variate.examine

        def examined(u: PyTree, **kwargs: Any) -> tuple[jax.Array, ExampleOutputs]:
            value, outputs = examine(varying(u, axes.data), **kwargs)
            return mean_over(value, axes.data), outputs

        control_variate = control_variate._replace(
            examine=examined,
            zeros=varying(control_variate.zeros, axes.data),
            data_axis_name=axes.data,
        )
    return space._replace(
        control_variate=control_variate,
        origin=widen(params),
        zeros=zeros_alike(space.zeros),
        value_fn=averaged(space.value_fn),
        value_and_grad=averaged(space.value_and_grad),
        axis_name=axes.samples,
    )


def null_space_noise(key: jax.Array, space: Space) -> PyTree:
    """A draw of N(0, I) in the null space, in the shapes of the parameters."""
    assert space.to_null_space is not None
    noise = standard_normals(key, space.origin, 1)
    return space.to_null_space(jax.tree.map(lambda leaf: leaf[0], noise))


def full_space(
    value_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    inner_batches: bool,
    data_axis_name: str | None = None,
) -> Space:
    """The full space: the coordinates are the parameters' own."""
    del data_axis_name  # which only coordinates made of rows need
    dtype = compute_dtype(params)
    origin = widen(params)
    zeros = zeros_alike(origin)

    def displaced(displacement: PyTree, j: Any = 0, sign: float = 1.0) -> jax.Array:
        current = nth_batch(batch, j) if inner_batches else batch
        if isinstance(batch, DrawNumber):
            current = j
        value = call(value_fn, translate(params, scaled(displacement, sign)), current)
        return jnp.asarray(value).astype(dtype)

    return Space(
        origin=origin,
        zeros=zeros,
        noise=lambda key, copies: standard_normals(key, zeros, copies),
        value_fn=displaced,
        value_and_grad=jax.value_and_grad(displaced),
        lift=lambda displacement: displacement,
        lower=lambda displacement: displacement,
        to_null_space=None,
    )
