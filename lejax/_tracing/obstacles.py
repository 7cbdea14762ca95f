"""Finds the reasons why a traced loss cannot be evaluated in parts, or again."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator
from typing import Any

import jax
from jax.core import Trace, Tracer
from jax.extend import core

# The names of the primitive of `jax.jit` in the versions of jax.
JIT = ("jit", "pjit")

# A custom rule may refer to these without using their contents: they are not searched.
_NEVER_SEARCHED = (Trace, type, types.ModuleType, jax.Array)


def obstacles(jaxpr: core.Jaxpr) -> frozenset[str]:
    """The reasons why a jaxpr cannot be evaluated in parts; empty if it can.

    These are side effects, operations that name an axis, and custom rules that close
    over a tracer. JAX does not count every operation that names an axis as an effect. A
    tracer is no longer valid when its rule is bound again.
    """
    found = set(map(str, jaxpr.effects))
    for equation in equations(jaxpr):
        name, params = equation.primitive.name, equation.params
        if "axis_name" in params:
            found.add(name)
        if name.startswith("custom_") and _holds_tracer(list(params.values())):
            found.add(f"{name} that closes over a traced value")
    return frozenset(found)


def calls_outside(jaxpr: core.Jaxpr) -> bool:
    """Whether a jaxpr calls functions on the host."""
    return any("callback" in step.primitive.name for step in equations(jaxpr))


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The equations of a jaxpr and of all jaxprs inside of it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from equations(getattr(value, "jaxpr", value))


def _is_jaxpr(value: Any) -> bool:
    # jax 0.10 has a class for closed jaxprs, jax 0.12 has none.
    return hasattr(value, "eqns")


def _holds_tracer(value: Any) -> bool:
    """Whether a tracer can be reached from a value, also through closures."""
    unvisited, visited = [value], set()
    while unvisited:
        value = unvisited.pop()
        if isinstance(value, Tracer):
            return True
        # A rule refers to its trace, which refers to all tracers so far: do not search.
        if id(value) in visited or isinstance(value, _NEVER_SEARCHED):
            continue
        visited.add(id(value))
        if isinstance(value, types.FunctionType):
            cells = value.__closure__ or ()
            unvisited += (c.cell_contents for c in cells if c != types.CellType())
            unvisited += value.__defaults__ or ()
        elif not _is_jaxpr(value):
            unvisited += gc.get_referents(value)
    return False
