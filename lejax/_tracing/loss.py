"""Calls the loss once, checks it, and traces it to a jaxpr, which is then evaluated."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend import core

from lejax._internal.checks import loss_function, takes
from lejax._internal.types import LossFn, PyTree
from lejax._tracing.obstacles import calls_outside, obstacles
from lejax._tracing.slope import has_slope


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A loss on its batch, as a function of the parameters and of a number j.

    Attributes:
        jaxpr: its inputs are the leaves of the parameters, then those of a batch.
        constants: the arrays that the jaxpr closes over, then the values of its last
            inputs that are the same in every call.
        aux: the structure of the second output; None without one.
        batches: the inner batches, stacked on a leading axis; call j uses the j-th of
            them, in turn. None if there are none.
        obstacles: the reasons why the jaxpr cannot be evaluated in parts.
        batch_sizes: the lengths of the leading axes of the batch.
        calls_outside: whether the loss calls functions on the host.
        again: calls `value_fn` itself, if the jaxpr cannot be evaluated a second time;
            else None.
        source: `value_fn` and its batch; both None once it is compiled for any
            constants.
    """

    jaxpr: core.Jaxpr
    constants: Sequence[Any]
    aux: Any
    batches: PyTree
    obstacles: frozenset[str]
    batch_sizes: frozenset[int]
    calls_outside: bool
    again: Callable[..., PyTree] | None
    source: Any

    def __call__(self, params: PyTree, j: Any = 0) -> jax.Array:
        """The value of f."""
        return self._outputs(params, j)[0]

    def outputs(self, params: PyTree) -> tuple[jax.Array, PyTree]:
        """The value of f and the second output, which is None if there is none."""
        value, *aux = self._outputs(params, 0)
        return value, None if self.aux is None else self.aux.unflatten(aux)

    def on(self, batch: PyTree) -> Loss:
        """The loss on another batch, if it was traced for any or for inner batches."""
        source = self.source[0], batch
        if self.batches is not None:
            return dataclasses.replace(self, batches=batch, source=source)
        leaves = jax.tree.leaves(batch)
        first = len(self.constants) - len(leaves)
        constants = [*self.constants[:first], *leaves]
        return dataclasses.replace(self, constants=constants, source=source)

    def _outputs(self, params: PyTree, j: Any) -> list[Any]:
        inner = () if self.batches is None else (nth_batch(self.batches, j),)
        if self.again is not None:
            return jax.tree.leaves(self.again(params, *inner))
        closed = len(self.jaxpr.constvars)
        constants, known = self.constants[:closed], self.constants[closed:]
        leaves = jax.tree.leaves((params, *inner))
        return eval_jaxpr(self.jaxpr, constants, *leaves, *known)


@dataclasses.dataclass(frozen=True, eq=False)
class OutsideLoss:
    """A loss that is evaluated outside of JAX, at all points at once.

    Attributes:
        losses_of: maps points, stacked on a leading axis, to their losses.
    """

    losses_of: Callable[[PyTree], jax.Array]

    def after(self, place: Callable[[PyTree], PyTree]) -> OutsideLoss:
        """The loss of `place(point)`."""
        return OutsideLoss(lambda points: self.losses_of(jax.vmap(place)(points)))


def unread(value_fn: LossFn, batch: PyTree) -> Loss:
    """A loss that is not traced yet: it has only its source."""
    source = loss_function(value_fn), batch
    nothing: Any = None
    return Loss(nothing, (), None, None, frozenset(), frozenset(), False, None, source)


def traced(
    value_fn: LossFn | Loss,
    params: PyTree,
    batch: PyTree,
    *,
    inner_batches: bool = False,
    any_batch: bool = False,
    has_aux: bool = False,
    differentiable: bool = False,
) -> Loss:
    """Traces the loss of these parameters on a batch, or on a stack of inner batches.

    With `any_batch` the method `on` can pass another batch of the same shapes.

    Raises:
        TypeError: `value_fn` does not return a real scalar, or must be `differentiable`
            and returns integers.
        ValueError: it must be `differentiable` and its gradient is identically zero.
    """
    if isinstance(value_fn, Loss):
        return value_fn
    value_fn = loss_function(value_fn)
    first = (first_batch(batch),) if inner_batches else (batch,) if any_batch else ()

    # A single batch is closed over, so that its leaves need not be arrays.
    def of(params: PyTree, *inner: PyTree) -> PyTree:
        given = inner[0] if inner else batch
        out = value_fn(params) if given is None else value_fn(params, given)
        return check_loss(out, has_aux=has_aux, differentiable=differentiable)

    try:
        closed, out = jax.make_jaxpr(of, return_shape=True)(params, *first)
    except Exception as error:
        _explain(error, value_fn, params, batch)
        raise
    jaxpr, constants = closed.jaxpr, list(closed.consts)
    if differentiable and not has_slope(jaxpr, len(jax.tree.leaves(params))):
        raise ValueError(
            "value_fn has no gradient: its derivatives with respect to params are all "
            "zero, as for a loss that counts, compares or rounds; use importance or "
            "score_function, which need no gradient."
        )
    if any_batch and not inner_batches:
        constants = [*constants, *jax.tree.leaves(batch)]
    stops = obstacles(jaxpr)
    return Loss(
        jaxpr,
        constants,
        jax.tree.structure(out[1]) if has_aux else None,
        batch if inner_batches else None,
        stops,
        frozenset(
            jnp.shape(leaf)[0]
            for leaf in jax.tree.leaves(batch)
            if hasattr(leaf, "shape") and jnp.ndim(leaf)
        ),
        calls_outside(jaxpr),
        of if any("traced value" in reason for reason in stops) else None,
        (value_fn, batch),
    )


def check_loss(
    out: Any, *, has_aux: bool = False, differentiable: bool = False
) -> tuple[Any, ...]:
    """The output of a loss as a tuple: f and, with `has_aux`, aux.

    Raises:
        TypeError: `has_aux` is set and the output is no pair; f is not a real scalar;
            or f must be `differentiable` and has an integer dtype.
    """
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"value_fn must return a pair (loss, aux) with has_aux, got {out}; "
            "return one, or drop has_aux."
        )
    if not has_aux and isinstance(out, tuple):
        raise TypeError(
            f"value_fn must return a scalar loss, got a tuple of {len(out)}; "
            "pass has_aux=True if it returns (loss, aux)."
        )
    value, *aux = out if has_aux else (out,)
    try:
        value_type = jax.eval_shape(lambda: jnp.asarray(value))
    except (TypeError, ValueError):
        value_type = value
    if getattr(value_type, "shape", None) != ():
        raise TypeError(
            f"value_fn must return a scalar loss, got {value_type}; "
            "reduce it, for example by .mean()."
        )
    dtype = jnp.result_type(value)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"value_fn must return a real loss, got {value_type}; take its real part."
        )
    if differentiable and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"value_fn returns {dtype}, which has no gradient; "
            "use importance or score_function, which need none."
        )
    return value, *aux


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
    """The inner batch number j modulo their count, so that they are used in turn."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[j % jnp.shape(leaf)[0]], batches)


def _is_loss(value_fn: LossFn, *args: PyTree) -> bool:
    """Whether `value_fn` returns a scalar for these arguments."""
    try:
        out = jax.eval_shape(lambda: value_fn(*args))
    except Exception:
        return False
    return getattr(out, "shape", None) == ()


def _explain(error: Exception, value_fn: LossFn, params: PyTree, batch: PyTree) -> None:
    """Raises an error with the cause of a failed call, or adds a note to its error."""
    if not takes(value_fn, *(params,) if batch is None else (params, batch)):
        given = "params alone" if batch is None else "params and a batch"
        mend = "pass batch=..." if batch is None else "leave batch out"
        raise TypeError(
            f"value_fn{inspect.signature(value_fn)} cannot be called with {given}; "
            f"{mend}, or change value_fn."
        ) from error

    def shapes(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: getattr(leaf, "shape", leaf), tree)

    untraceable = (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    )
    if isinstance(error, untraceable):
        raise TypeError(
            "value_fn needs the values of an array that JAX traces, as NumPy and "
            "float() do; write it with jax.numpy, put code that must run outside of "
            "JAX into jax.pure_callback, or use lejax.ask_tell."
        ) from error
    if batch is not None and _is_loss(value_fn, batch, params):
        raise TypeError(
            "value_fn fails on (params, batch), and runs on (batch, params); its "
            "arguments are swapped: let the parameters be the first."
        ) from error
    if type(error).__name__ == "TraceContextError":  # Flax
        error.add_note(
            "value_fn changes the state of a module that it closes over, such as batch "
            "statistics; merge with copy=True, and return the new state as aux."
        )
        return
    error.add_note(
        f"value_fn failed on params of shapes {shapes(params)} and a batch of shapes "
        f"{shapes(batch)}; check that value_fn expects these shapes."
    )
    if getattr(params, "ndim", None) == 1:
        error.add_note(
            "If optax.flatten made params one vector, wrap only what follows lejax: "
            "optax.chain(lejax.local_entropy(...), optax.flatten(optax.adam(1e-3)))."
        )
