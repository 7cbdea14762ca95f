"""The call of the loss: with or without a batch, checked before it is traced."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from lejax._internal.checks import loss_function
from lejax._internal.types import LossFn, PyTree


def call(value_fn: LossFn, params: PyTree, batch: PyTree) -> Any:
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


def without_aux(value_fn: LossFn) -> LossFn:
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


def _explain(error: Exception, value_fn: LossFn, params: PyTree, batch: PyTree) -> None:
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
