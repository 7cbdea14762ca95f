"""Checks by its jaxpr whether a loss has a gradient that is identically zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core

from lejax._tracing.obstacles import JIT

# Piecewise constant: the derivative is zero wherever it exists.
FLAT = ("sign", "floor", "ceil", "round", "stop_gradient")


def has_slope(jaxpr: core.Jaxpr, count: int) -> bool:
    """False if all derivatives with respect to the first `count` inputs are zero.

    True if this cannot be decided, as for while loops and custom derivative rules.
    """
    inputs = [place < count for place in range(len(jaxpr.invars))]
    return _slopes(jaxpr, inputs)[0]


def _slopes(jaxpr: core.Jaxpr, inputs: Sequence[bool]) -> list[bool]:
    """Which outputs may have a derivative with respect to the marked inputs."""
    marked = {
        variable
        for variable, mark in zip(jaxpr.invars, inputs, strict=True)
        if mark and _is_real(variable)
    }

    def of(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and atom in marked

    for step in jaxpr.eqns:
        found = _slopes_of(step, list(map(of, step.invars)))
        marked |= {
            variable
            for variable, mark in zip(step.outvars, found, strict=True)
            if mark and _is_real(variable)
        }
    return list(map(of, jaxpr.outvars))


def _slopes_of(step: core.JaxprEqn, inputs: list[bool]) -> list[bool]:
    name, params = step.primitive.name, step.params
    if name in FLAT or not any(inputs):
        return [False] * len(step.outvars)
    if name in JIT:
        return _slopes(params["jaxpr"].jaxpr, inputs)
    if name == "cond":
        found = [_slopes(branch.jaxpr, inputs[1:]) for branch in params["branches"]]
        return [any(marks) for marks in zip(*found, strict=True)]
    if name == "scan":
        body = params["jaxpr"].jaxpr
        # Constants, then the carry, then slices of arrays; the versions of jax have
        # different parameters for how many there are.
        carried = len(step.outvars) - _sliced(step.outvars, body.outvars)
        last = len(step.invars) - _sliced(step.invars, body.invars)
        first = last - carried
        while True:
            found = _slopes(body, inputs)
            carry = [a or b for a, b in zip(inputs[first:last], found, strict=False)]
            if carry == inputs[first:last]:
                return found
            inputs = [*inputs[:first], *carry, *inputs[last:]]
    return [True] * len(step.outvars)


def _sliced(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    """How many values a step of a scan takes, or gives, slice by slice."""
    pairs = zip(outer, inner, strict=True)
    return sum(one.aval.ndim != other.aval.ndim for one, other in pairs)


def _is_real(variable: Any) -> bool:
    dtype = variable.aval.dtype
    return bool(jnp.issubdtype(dtype, jnp.inexact))
