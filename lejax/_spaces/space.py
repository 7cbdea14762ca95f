"""The space in which a sampler draws: its coordinates, and the loss in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._internal.blocks import Blocks, Layout, layout_of
from lejax._internal.mesh_axes import mean_over, varying
from lejax._internal.random import Noise, standard_normals, translate
from lejax._internal.trees import signed, widen
from lejax._internal.types import PyTree
from lejax._spaces.control_variate import ControlVariate, ExampleOutputs
from lejax._tracing.loss import Loss, OutsideLoss


class Space(NamedTuple):
    """The coordinates in which a sampler draws, and the loss in them.

    A sampler works with displacements u from x, as blocks in the shapes of `zeros`.
    Each kind of coordinates is a function that returns this tuple. The coordinates may
    leave out the null space: directions in which the loss is constant.

    Attributes:
        origin: x, in at least float32.
        zeros: the displacement 0.
        noise: `noise(key, copies)`: a draw of N(0, I) in these coordinates.
        value_fn: `value_fn(u, j=0, sign=None)`: the loss at the displacement ±u. With
            inner batches it is the loss on the j-th of them, in turn.
        value_and_grad: `value_and_grad(u, j=0)`: the loss at u, and its gradient.
        tree: the coordinates u as a tree.
        lift: maps a displacement in these coordinates to one of the parameters.
        lower: the reverse of `lift`, for a displacement that is kept between updates.
        to_null_space: the projection of a displacement of the parameters onto the null
            space; None if no null space is left out.
        control_variate: the per-example control variate, if it is requested and exists.
        exact: whether to avoid evaluations as padding, whose values are not used.
        outside: the loss of displacements, stacked on a leading axis, if it is
            evaluated outside of JAX.
    """

    origin: PyTree
    zeros: Blocks
    noise: Callable[[jax.Array, int], Noise]
    value_fn: Callable[..., jax.Array]
    value_and_grad: Callable[..., tuple[jax.Array, Blocks]]
    tree: Callable[[Blocks], PyTree]
    lift: Callable[[Blocks], PyTree]
    lower: Callable[[PyTree], Blocks]
    to_null_space: Callable[[PyTree], PyTree] | None
    control_variate: ControlVariate | None
    exact: bool
    outside: OutsideLoss | None = None


def over_data(space: Space, params: PyTree, data_axis_name: str) -> Space:
    """The same coordinates for the members of an axis that hold parts of the batch.

    `space` was made at parameters that vary over the axis, as displaced parameters do;
    `params` do not vary. The loss of a draw is the mean over the members. The mean is
    taken before the weights, as these are not linear in the loss.
    """

    def averaged(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        # The mean is outside of `evaluate`, so a gradient is that of a member's own
        # loss and does not depend on the rule for the gradient of a mean over an axis.
        return lambda u, *args, **kwargs: mean_over(
            evaluate(varying(u, data_axis_name), *args, **kwargs), data_axis_name
        )

    control_variate = space.control_variate
    if control_variate is not None:
        examine = control_variate.examine

        def examined(u: Blocks, *args: Any) -> tuple[jax.Array, ExampleOutputs]:
            value, outputs = examine(varying(u, data_axis_name), *args)
            return mean_over(value, data_axis_name), outputs

        control_variate = control_variate._replace(
            examine=examined,
            zeros=varying(control_variate.zeros, data_axis_name),
            data_axis_name=data_axis_name,
        )
    return space._replace(
        control_variate=control_variate,
        origin=widen(params),
        zeros=optax.tree.zeros_like(space.zeros),
        value_fn=averaged(space.value_fn),
        value_and_grad=averaged(space.value_and_grad),
    )


def null_space_noise(key: jax.Array, space: Space) -> PyTree:
    """A draw of N(0, I) in the null space, in the shapes of the parameters."""
    assert space.to_null_space is not None
    layout = layout_of(space.origin)
    noise = standard_normals(key, layout.zeros(space.origin), 1, pooled=layout.pooled)
    return space.to_null_space(layout.tree(noise.normals))


def full_space(loss: Loss | OutsideLoss, params: PyTree) -> Space:
    """The full space: the coordinates are the parameters themselves."""
    origin = widen(params)
    layout = layout_of(origin)
    if isinstance(loss, OutsideLoss):
        return space_of(layout, origin, origin, None, exact=True)._replace(
            outside=loss.after(lambda u: translate(params, layout.tree(u)))
        )

    def displaced(u: Blocks, j: Any = 0, sign: Any = None) -> jax.Array:
        moved = layout.tree(signed(u, sign))
        return loss(translate(params, moved), j)

    return space_of(layout, origin, origin, displaced, exact=loss.calls_outside)


def space_of(
    layout: Layout,
    origin: PyTree,
    like: PyTree,
    displaced: Any,
    *,
    exact: bool,
) -> Space:
    """A space whose coordinates are a tree of this layout, in the shapes of `like`."""
    zeros = layout.zeros(like)

    def value_fn(u: Blocks, j: Any = 0, sign: Any = None) -> jax.Array:
        return jnp.asarray(displaced(u, j, sign)).astype(layout.dtype)

    return Space(
        origin=origin,
        zeros=zeros,
        noise=lambda key, copies: standard_normals(
            key, zeros, copies, pooled=layout.pooled
        ),
        value_fn=value_fn,
        value_and_grad=jax.value_and_grad(value_fn),
        tree=layout.tree,
        lift=layout.tree,
        lower=layout.blocks,
        to_null_space=None,
        control_variate=None,
        exact=exact,
    )
