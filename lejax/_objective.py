"""The door between a sampler and the loss: checks, and the coordinates of the draws."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lejax._axes import Axes, mean_over, varying
from lejax._covariance import Products
from lejax._credit import Credit, Seen
from lejax._trees import (
    PyTree,
    compute_dtype,
    scaled,
    standard_normals,
    translate,
    widen,
    zeros_alike,
)
from lejax._validate import loss_function


def call(value_fn: Callable[..., Any], params: PyTree, batch: PyTree) -> Any:
    """`value_fn(params, batch)`, or `value_fn(params)` where no batch was passed."""
    return value_fn(params) if batch is None else value_fn(params, batch)


def check_objective(
    value_fn: Any,
    params: PyTree,
    batch: PyTree,
    *,
    has_aux: bool = False,
    differentiable: bool = False,
) -> None:
    """Refuse what is not a scalar loss of these parameters on this batch."""
    loss_function(value_fn)
    try:
        # The batch is closed over, so that it may hold more than arrays.
        out = jax.eval_shape(lambda params: call(value_fn, params, batch), params)
    except Exception as error:
        _explain(error, value_fn, params, batch)
        raise
    if has_aux:
        out = _loss_of_pair(out)
    elif isinstance(out, tuple):
        raise TypeError(
            f"value_fn must return a scalar loss, got a tuple of {len(out)}; "
            "pass has_aux=True if it returns (loss, aux)."
        )
    shape = getattr(out, "shape", None)
    if shape != ():
        raise TypeError(
            f"value_fn must return a scalar loss, got {out}; "
            "reduce it, for example by .mean()."
        )
    if jnp.issubdtype(out.dtype, jnp.complexfloating):
        raise TypeError(f"value_fn must return a real loss, got {out}; take its real.")
    if differentiable and not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"value_fn returns {out.dtype}, which has no gradient; "
            "use importance or score_function, which need none."
        )


def without_aux(value_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The loss alone of a `value_fn` that returns (loss, aux)."""
    return functools.wraps(value_fn)(lambda *args: _loss_of_pair(value_fn(*args)))


def _loss_of_pair(out: Any) -> Any:
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"value_fn must return a pair (loss, aux) with has_aux, got {out}; "
            "return one, or drop has_aux."
        )
    return out[0]


def first_batch(batch: PyTree) -> PyTree:
    """The first of the inner batches along the leading axis."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if not shapes or any(shape[:1] != shapes[0][:1] or shape == () for shape in shapes):
        raise ValueError(
            "batch must have one leading axis of inner batches common to its leaves, "
            f"got leaves of shapes {shapes}; stack the inner batches, or drop "
            "inner_batches=True."
        )
    return nth_batch(batch, 0)


def nth_batch(batches: PyTree, j: Any) -> PyTree:
    """The j-th of the inner batches, which take turns."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[j % jnp.shape(leaf)[0]], batches)


def _explain(
    error: Exception, value_fn: Callable[..., Any], params: PyTree, batch: PyTree
) -> None:
    """Raise or note what is wrong with the call, where that can be seen."""
    try:
        signature = inspect.signature(value_fn)
    except (TypeError, ValueError):  # some builtins have none
        signature = None
    try:
        if signature is not None:
            signature.bind(*(params,) if batch is None else (params, batch))
    except TypeError as mismatch:
        takes = "params alone" if batch is None else "params and a batch"
        mend = "pass batch=..." if batch is None else "leave batch out"
        raise TypeError(
            f"value_fn{signature} cannot be called with {takes} ({mismatch}); "
            f"{mend}, or change value_fn."
        ) from error

    def shapes(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: getattr(leaf, "shape", leaf), tree)

    error.add_note(
        f"value_fn failed on params of shapes {shapes(params)} and a batch of shapes "
        f"{shapes(batch)}; see that they are what value_fn expects."
    )
    if getattr(params, "ndim", None) == 1:
        error.add_note(
            "If optax.flatten made params one vector, let it wrap only what follows: "
            "optax.chain(lejax.local_entropy(...), optax.flatten(optax.adam(1e-3)))."
        )


class DrawNumber(int):
    """A batch that is another for every draw: its number among all J evaluations.

    So a loss tells apart, and is told, what is evaluated elsewhere.
    """


class Coordinates(NamedTuple):
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
    credit: Credit | None = None
    products: Products | None = None


def over_axes(space: Coordinates, params: PyTree, axes: Axes) -> Coordinates:
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

        def examined(u: PyTree, **kwargs: Any) -> tuple[jax.Array, Seen]:
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


def complement_noise(key: jax.Array, space: Coordinates) -> PyTree:
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
) -> Coordinates:
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

    return Coordinates(
        origin=origin,
        zeros=zeros,
        noise=lambda key, copies: standard_normals(key, zeros, copies),
        value_fn=displaced,
        value_and_grad=jax.value_and_grad(displaced),
        lift=lambda displacement: displacement,
        lower=lambda displacement: displacement,
        outside=None,
    )
