"""What is compiled for a loss, kept for the next loss that traces to the same program.

A loss is called, and so traced, in every update outside of `jax.jit`: that takes
milliseconds, and sees each global and closure as it is now. Programs are compared with
their literals, arrays alone are arguments: another value is another program, or another
argument, never the old one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer
from jax.extend import core

from lejax._internal.types import PyTree
from lejax._tracing.loss import Loss, OutsideLoss
from lejax._tracing.obstacles import equations
from lejax._tracing.program import JIT, binding

# Calls of functions with a derivative rule, in the versions of jax.
RULED = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")

# So many programs are kept, the last ones.
MOST_PROGRAMS = 64


class NotComparableError(Exception):
    """A program has something in it of which nobody knows whether it is the same."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A loss without its constants, compared by what it computes."""

    key: Hashable
    loss: Loss = dataclasses.field(compare=False)


def run_compiled(
    fn: Callable[..., PyTree],
    settings: Hashable,
    loss: Loss | OutsideLoss,
    params: PyTree,
    *args: PyTree,
    differentiated: bool,
    inline: bool = False,
) -> PyTree:
    """`fn(settings, loss, params, *args)`, compiled once for each program and settings.

    Inside of another trace, and where programs cannot be compared, it runs as it is.
    The loss was traced under the caller's modes; those of `fn` are its own.
    """
    fn = _broadcasting(fn)
    if inline or isinstance(loss, OutsideLoss) or loss.again is not None:
        return fn(settings, loss, params, *args)
    arrays = jax.tree.leaves((loss.constants, loss.batches, params, args))
    if any(isinstance(leaf, Tracer) for leaf in arrays):
        return fn(settings, loss, params, *args)
    try:
        run = _found(fn, settings, loss, params, differentiated, donate=False)
    except (NotComparableError, TypeError):
        return fn(settings, loss, params, *args)
    return run(params, *args)


def compiled(
    fn: Callable[..., PyTree],
    settings: Hashable,
    loss: Loss,
    params: PyTree,
    *,
    differentiated: bool,
    comparable: bool,
    donate: bool,
) -> Callable[..., PyTree]:
    """`fn(settings, loss, *args)` as a compiled function of `args`.

    It is one that was compiled before if that is `comparable`. With `donate` the first
    of `args` is used up.
    """
    fn = _broadcasting(fn)
    if comparable and loss.again is None:
        with contextlib.suppress(NotComparableError, TypeError):
            return _found(fn, settings, loss, params, differentiated, donate=donate)
    run = _compile(fn, settings, Program(None, loss), donate)
    return functools.partial(run, loss.constants, loss.batches)


@functools.cache
def _broadcasting(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn` where arrays of other ranks are broadcast, whatever the caller has set."""

    @functools.wraps(fn)
    def broadcasting(*args: Any) -> PyTree:
        with jax.numpy_rank_promotion("allow"):
            return fn(*args)

    return broadcasting


def _found(
    fn: Callable[..., PyTree],
    settings: Hashable,
    loss: Loss,
    params: PyTree,
    differentiated: bool,
    *,
    donate: bool,
) -> Callable[..., PyTree]:
    program, constants = comparable(loss, params, differentiated=differentiated)
    run = _programs_of(loss)(fn, settings, program, donate)
    return functools.partial(run, constants, loss.batches)


def _compile(
    fn: Callable[..., PyTree], settings: Hashable, program: Program, donate: bool
) -> Callable[..., PyTree]:
    def run(constants: list[Any], batches: PyTree, *args: PyTree) -> PyTree:
        loss = dataclasses.replace(program.loss, constants=constants, batches=batches)
        return fn(settings, loss, *args)

    return jax.jit(run, donate_argnums=2 if donate else ())


_cached = functools.lru_cache(MOST_PROGRAMS)(_compile)
# A program that calls functions of the host holds them, and what they close over.
_cached_weakly: Any = weakref.WeakKeyDictionary()


def _programs_of(loss: Loss) -> Callable[..., Callable[..., PyTree]]:
    """The programs among which that of the loss may be."""
    if not loss.calls_outside:
        return _cached
    owner = inspect.unwrap(loss.source[0])
    if owner not in _cached_weakly:
        _cached_weakly[owner] = functools.lru_cache(MOST_PROGRAMS)(_compile)
    return _cached_weakly[owner]


@dataclasses.dataclass(frozen=True)
class Same:
    """A value, compared by what it computes."""

    key: Hashable
    value: Any = dataclasses.field(compare=False)


def same_optimizer(optimizer: optax.GradientTransformation, params: PyTree) -> Same:
    """An optimiser, compared by its programs; by itself where these do not tell."""
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
    """The loss without its constants, and these.

    Raises:
        NotComparableError: nobody knows whether it is the same as another.
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
        # Rules are functions, and new ones every time: what they do is compared.
        def slope(constants: Any, batches: PyTree, params: PyTree) -> PyTree:
            own = dataclasses.replace(bare, constants=constants, batches=batches)
            return jax.grad(own)(params)

        closed = jax.make_jaxpr(slope)(constants, loss.batches, params)
        if closed.consts or any(True for _ in _inner_constants(closed.jaxpr)):
            raise NotComparableError  # arrays of the rule's own
        key = *key, _key_of(closed.jaxpr)
    return Program(key, bare), constants


def _has_rule(step: core.JaxprEqn) -> bool:
    """Whether it is a function with a derivative rule of the user's."""
    return step.primitive.name in RULED


def _hoisted(jaxpr: core.Jaxpr, constants: Any) -> tuple[core.Jaxpr, list[Any]]:
    """A jaxpr whose calls of `jax.jit` close over nothing, and its constants."""
    closed = len(jaxpr.constvars)
    inner = list(_inner_constants(jaxpr))
    # Since jax 0.12 a jaxpr holds its constants itself.
    if not inner and not (closed and hasattr(jaxpr, "consts")):
        return jaxpr, list(constants)
    # What is closed over inside goes before the last arguments, a batch.
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
    """What a jaxpr computes, whatever its variables are called."""
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
            # A rule is another object every time; `comparable` sees what it does.
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
    """So that NaN is itself, and 0 not -0."""
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
