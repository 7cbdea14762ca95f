"""Reuses a compiled function for every loss that traces to the same program.

Outside of `jax.jit` every update calls the loss and so traces it. This takes
milliseconds and reads the present values of globals and closures. Programs are compared
together with their literals. Only arrays are arguments of the compiled function. A
changed value is therefore another program or another argument, never a stale one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.core import Tracer

from lejax._internal.types import PyTree
from lejax._tracing.comparison import NotComparableError, Program, comparable
from lejax._tracing.loss import Loss, OutsideLoss

# The number of compiled programs that are kept, the most recently used ones.
MOST_PROGRAMS = 64


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

    Inside of another trace, or if programs cannot be compared, `fn` runs uncompiled.
    The loss was traced with the caller's rank promotion; `fn` itself allows it.
    """
    fn = _broadcasting(fn)
    if isinstance(loss, OutsideLoss):
        return fn(settings, loss, params, *args)
    arrays = jax.tree.leaves((loss.constants, loss.batches, params, args))
    if any(isinstance(leaf, Tracer) for leaf in arrays):
        return fn(settings, loss, params, *args)
    run, is_new = functools.partial(fn, settings, loss), True
    if loss.jaxpr is None:  # each device reads its part: one program, not hundreds
        run = jax.jit(run)
    if not inline and loss.again is None:
        with contextlib.suppress(NotComparableError, TypeError):
            run, is_new = _found(
                fn, settings, loss, params, differentiated, donate=False
            )
    if is_new:
        _count_compilation(fn, settings, loss)
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

    If `comparable`, a function that was compiled for an equal program is reused. With
    `donate` the first of `args` is donated.
    """
    fn = _broadcasting(fn)
    if comparable and loss.again is None:
        with contextlib.suppress(NotComparableError, TypeError):
            return _found(fn, settings, loss, params, differentiated, donate=donate)[0]
    run = _compile(fn, settings, Program(None, loss), donate)
    return functools.partial(run, loss.constants, loss.batches)


@functools.cache
def _broadcasting(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn` with `jax_numpy_rank_promotion` set to "allow", whatever the caller's is."""

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
) -> tuple[Callable[..., PyTree], bool]:
    """The compiled function, and whether it is a new one."""
    program, constants = comparable(loss, params, differentiated=differentiated)
    programs = _programs_of(loss)
    known = programs.cache_info().misses
    run = programs(fn, settings, program, donate)
    is_new = programs.cache_info().misses > known
    return functools.partial(run, constants, loss.batches), is_new


def _compile(
    fn: Callable[..., PyTree], settings: Hashable, program: Program, donate: bool
) -> Callable[..., PyTree]:
    def run(constants: list[Any], batches: PyTree, *args: PyTree) -> PyTree:
        loss = dataclasses.replace(program.loss, constants=constants, batches=batches)
        return fn(settings, loss, *args)

    return jax.jit(run, donate_argnums=2 if donate else ())


_cached = functools.lru_cache(MOST_PROGRAMS)(_compile)
# A program with a callback keeps the callback and its closure alive. So its cache lives
# only as long as the loss.
_cached_weakly: Any = weakref.WeakKeyDictionary()


def _programs_of(loss: Loss) -> Any:
    """The cache for the compiled programs of this loss."""
    if not loss.calls_outside:
        return _cached
    owner = inspect.unwrap(loss.source[0])
    if owner not in _cached_weakly:
        _cached_weakly[owner] = functools.lru_cache(MOST_PROGRAMS)(_compile)
    return _cached_weakly[owner]


# After this many compilations an update outside of `jax.jit` is taken to compile at
# every call.
MANY_COMPILATIONS = 5


@functools.lru_cache(MOST_PROGRAMS)
def _compilations(fn: Callable[..., PyTree], settings: Hashable, code: Any) -> Any:
    """Counts the programs of one function of the source code, for the same settings."""
    del fn, settings, code
    return itertools.count(1)


def _count_compilation(
    fn: Callable[..., PyTree], settings: Hashable, loss: Loss
) -> None:
    """Warns if an update is compiled again at every call."""
    code = getattr(inspect.unwrap(loss.source[0]), "__code__", None)
    try:
        count = next(_compilations(fn, settings, code))
    except TypeError:  # the settings cannot be hashed
        return
    if code is not None and count == MANY_COMPILATIONS:
        warnings.warn(
            f"value_fn={code.co_name} was compiled {MANY_COMPILATIONS} times outside "
            "of jax.jit, because no earlier program fits the next call: a number in it "
            "changes, its batch has another shape, or its draws are shared by devices; "
            "pass changing numbers as arrays in batch=, or wrap the update in jax.jit.",
            stacklevel=5,
        )
