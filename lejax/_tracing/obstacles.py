"""What keeps a traced loss from being run in parts, or a second time."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator
from typing import Any

import jax
from jax.core import Trace, Tracer
from jax.extend import core

# Types that a custom rule refers to without holding their contents.
_NEVER_SEARCHED = (Trace, type, types.ModuleType, jax.Array)


def obstacles(jaxpr: core.Jaxpr) -> frozenset[str]:
    """Why a jaxpr cannot be run in parts; nothing if it can.

    Side effects, operations that name an axis, and custom rules that close over a
    tracer.

    Not every operation that names an axis counts as an effect. A tracer is dead when
    the rule is bound again.
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
    """Whether a jaxpr calls functions of the host."""
    return any("callback" in step.primitive.name for step in equations(jaxpr))


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Those of a jaxpr and of all jaxprs inside."""
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
        # A rule refers to its trace, and the trace to every tracer so far.
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
