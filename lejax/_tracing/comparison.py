"""Whether two losses, or two optimizers, compute the same: keys of their programs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.extend import core

from lejax._internal.types import PyTree
from lejax._tracing.loss import Loss
from lejax._tracing.obstacles import JIT, equations
from lejax._tracing.program import binding

# Primitives that call a function with a custom derivative rule, over jax's versions.
RULED = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


class NotComparableError(Exception):
    """It cannot be decided whether a program equals another one."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A loss without its constants; equal to another one if the keys are equal."""

    key: Hashable
    loss: Loss = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class Same:
    """A value; equal to another one if the keys are equal."""

    key: Hashable
    value: Any = dataclasses.field(compare=False)


def same_optimizer(optimizer: optax.GradientTransformation, params: PyTree) -> Same:
    """An optimizer, compared by its programs, or by itself if these do not suffice."""
    key: Hashable = optimizer
    with contextlib.suppress(Exception):
        begin, first = jax.make_jaxpr(optimizer.init, return_shape=True)(params)
        programs = begin, jax.make_jaxpr(optimizer.update)(params, first, params)
        state = jax.tree.structure(first)
        if all(np.size(array) < 2 for closed in programs for array in closed.consts):
            key = state, *map(_key_of_param, programs)
    return Same(key, optimizer)


def comparable(
    loss: Loss, params: PyTree, *, differentiated: bool
) -> tuple[Program, list[Any]]:
    """The loss without its constants, and the constants.

    Raises:
        NotComparableError: the program cannot be compared with another one.
    """
    jaxpr, constants = _hoisted(loss.jaxpr, loss.constants)
    key: Any = (
        _key_of(jaxpr),
        loss.aux,
        jax.tree.structure(loss.batches),
        loss.batch_sizes,
        jax.debug_nans.value,
    )
    bare = dataclasses.replace(
        loss, jaxpr=jaxpr, constants=(), batches=None, source=(None, None)
    )
    if differentiated and any(_has_rule(step) for step in equations(jaxpr)):
        # A rule is a new function in every trace, so the program of the gradient is
        # compared instead.
        def slope(constants: Any, batches: PyTree, params: PyTree) -> PyTree:
            own = dataclasses.replace(bare, constants=constants, batches=batches)
            return jax.grad(own)(params)

        closed = jax.make_jaxpr(slope)(constants, loss.batches, params)
        if closed.consts or any(True for _ in _inner_constants(closed.jaxpr)):
            raise NotComparableError  # the rule closes over arrays
        key = *key, _key_of(closed.jaxpr)
    return Program(key, bare), constants


def _has_rule(step: core.JaxprEqn) -> bool:
    """Whether the equation calls a function with a custom derivative rule."""
    return step.primitive.name in RULED


def _hoisted(jaxpr: core.Jaxpr, constants: Any) -> tuple[core.Jaxpr, list[Any]]:
    """A jaxpr whose `jax.jit` equations close over no arrays, and all constants."""
    closed = len(jaxpr.constvars)
    inner = list(_inner_constants(jaxpr))
    # Since jax 0.12 a jaxpr holds its constants itself.
    if not inner and not (closed and hasattr(jaxpr, "consts")):
        return jaxpr, list(constants)
    # The inner constants go before the last arguments, those of a batch.
    every = [*constants[:closed], *inner, *constants[closed:]]
    tail = len(constants) - closed

    def run(args: list[Any], every: list[Any]) -> list[Any]:
        others = iter(every[closed : closed + len(inner)])
        last = every[len(every) - tail :]
        return _inlined(jaxpr, every[:closed], [*args, *last], others)

    own = len(jaxpr.invars) - tail
    avals: list[Any] = [variable.aval for variable in jaxpr.invars[:own]]
    like = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return jax.make_jaxpr(run)(like, every).jaxpr, every


def _inner_constants(jaxpr: core.Jaxpr) -> Iterator[Any]:
    for step in jaxpr.eqns:
        if step.primitive.name in JIT:
            inner = step.params["jaxpr"]
            yield from inner.consts
            yield from _inner_constants(inner.jaxpr)


def _inlined(
    jaxpr: core.Jaxpr, constants: Any, args: Any, others: Iterator[Any]
) -> list[Any]:
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for step in jaxpr.eqns:
        operands = [value(atom) for atom in step.invars]
        if step.primitive.name in JIT:
            inner = step.params["jaxpr"]
            own = [next(others) for _ in inner.consts]
            results = _inlined(inner.jaxpr, own, operands, others)
        else:
            results = binding(jaxpr, step)(*operands)
        values |= dict(zip(step.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _key_of(jaxpr: core.Jaxpr) -> Hashable:
    """A hashable description of a jaxpr, without the names of its variables."""
    numbers: dict[Any, int] = {}

    def new(variables: Any) -> Hashable:
        for variable in variables:
            numbers[variable] = len(numbers)
        return tuple(variable.aval for variable in variables)

    def key_of(atom: Any) -> Hashable:
        if isinstance(atom, core.Literal):
            return atom.aval, bytes_of(atom.val)
        return numbers[atom]

    def key_of_step(step: core.JaxprEqn) -> Hashable:
        params = tuple(
            (name, _key_of_param(value))
            for name, value in sorted(step.params.items())
            # A rule is a new object in every trace; `comparable` compares its gradient.
            if hasattr(value, "eqns") or not _has_rule(step)
        )
        inputs = tuple(map(key_of, step.invars))
        return step.primitive, inputs, params, new(step.outvars)

    return (
        new(jaxpr.constvars),
        new(jaxpr.invars),
        tuple(map(key_of_step, jaxpr.eqns)),
        tuple(map(key_of, jaxpr.outvars)),
    )


def bytes_of(number: Any) -> bytes:
    """The bytes of a number: NaN equals itself, and 0 differs from -0."""
    return np.asarray(number).tobytes()


def _key_of_param(value: Any) -> Hashable:
    if hasattr(value, "eqns"):
        closed = getattr(value, "consts", ())
        if any(np.size(array) > 1 for array in closed):
            raise NotComparableError
        return _key_of(getattr(value, "jaxpr", value)), tuple(map(bytes_of, closed))
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_key_of_param, value))
    if isinstance(value, dict):
        return tuple(sorted((name, _key_of_param(x)) for name, x in value.items()))
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, value.tobytes()
    hash(value)
    return value
