"""A traced loss as a flat list of operations: what can be read, and run in parts.

Calls of `jax.jit` are opened; every other operation, a custom derivative rule or a loop
among them, stays whole and is bound again as it was traced.
"""

from __future__ import annotations

import gc
import itertools
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Trace, Tracer, eval_jaxpr
from jax.extend import core

# The names of `jax.jit` in the versions of jax.
_JIT = ("jit", "pjit")

# What can be reached from a custom rule, but is not a part of it.
_NOT_OF_A_RULE = (Trace, type, types.ModuleType, jax.Array)


class Operation(NamedTuple):
    """One primitive, applied to numbered values.

    Attributes:
        name: of the primitive.
        params: of the primitive.
        inputs: the numbers of its operands.
        outputs: the numbers of its results.
        bind: the operation itself, on the operands' values.
    """

    name: str
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bind: Callable[..., list[Any]]


class Program(NamedTuple):
    """Operations in an order in which they can run, none of them without use.

    Attributes:
        operations: what is done.
        inputs: the numbers of the arguments' leaves, in their order.
        constants: the values known from the start, by number.
        shapes: what every value looks like (`.shape` and `.dtype`), by number.
        output: the number of the result.
        obstacles: what forbids to run it in parts: side effects, an exchange with the
            members of an axis, a custom rule that holds a value of the trace.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    constants: dict[int, Any]
    shapes: dict[int, Any]
    output: int
    obstacles: frozenset[str]

    def in_one_piece(self) -> str:
        """Why it cannot be run in parts; empty where it can."""
        if not self.obstacles:
            return ""
        return f"the loss cannot be run in parts: {', '.join(sorted(self.obstacles))}"

    def run(self, operations: Iterable[Operation], values: dict[int, Any]) -> None:
        """Run some of the operations; `values` has their operands, and the results."""
        for operation in operations:
            operands = (values[number] for number in operation.inputs)
            results = operation.bind(*operands)
            values.update(zip(operation.outputs, results, strict=True))

    def source(self, number: int) -> int:
        """The value of which this is but a copy for every member of a mesh."""
        copies = {
            operation.outputs[0]: operation.inputs[0]
            for operation in self.operations
            if operation.name == "pvary"
        }
        return copies.get(number, number)

    def dependents(self, numbers: Iterable[int]) -> set[int]:
        """The values that are computed from those with these numbers, and these."""
        found = set(numbers)
        for operation in self.operations:
            if not found.isdisjoint(operation.inputs):
                found.update(operation.outputs)
        return found


def trace(fn: Callable[..., Any], *args: Any) -> Program:
    """The program of a function of trees of arrays with one result."""
    closed = jax.make_jaxpr(fn)(*args)
    numbers = itertools.count()
    constants: dict[int, Any] = {}
    shapes: dict[int, Any] = {}
    operations: list[Operation] = []

    def new(aval: Any) -> int:
        number = next(numbers)
        shapes[number] = aval
        return number

    def constant(aval: Any, value: Any) -> int:
        number = new(aval)
        constants[number] = value
        return number

    def walk(closed: Any, arguments: Iterable[int]) -> list[int]:
        jaxpr = closed.jaxpr
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, closed.consts, strict=True):
            known[variable] = constant(variable.aval, value)

        def number_of(atom: Any) -> int:
            if isinstance(atom, core.Literal):
                aval: Any = atom.aval
                return constant(aval, jnp.asarray(atom.val, aval.dtype))
            return known[atom]

        for equation in jaxpr.eqns:
            inputs = tuple(map(number_of, equation.invars))
            if equation.primitive.name in _JIT:
                outputs = walk(equation.params["jaxpr"], inputs)
            else:
                outputs = [new(variable.aval) for variable in equation.outvars]
                operations.append(
                    Operation(
                        equation.primitive.name,
                        equation.params,
                        inputs,
                        tuple(outputs),
                        _binding(jaxpr, equation),
                    )
                )
            known.update(zip(equation.outvars, outputs, strict=True))
        return [number_of(atom) for atom in jaxpr.outvars]

    inputs = [new(variable.aval) for variable in closed.jaxpr.invars]
    (output,) = walk(closed, inputs)

    needed = {output}
    used: list[Operation] = []
    for operation in reversed(operations):
        if not needed.isdisjoint(operation.outputs):
            needed.update(operation.inputs)
            used.append(operation)
    return Program(
        tuple(reversed(used)),
        tuple(inputs),
        constants,
        shapes,
        output,
        frozenset(map(str, closed.jaxpr.effects)) | _obstacles(closed.jaxpr),
    )


def _obstacles(jaxpr: core.Jaxpr) -> set[str]:
    """Operations that name an axis (not all of them count as effects), and custom rules
    that close over a tracer, which is dead when they are bound again."""
    found = set()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, list(equation.params.values())
        if "axis_name" in equation.params:
            found.add(name)
        if name.startswith("custom_") and _holds_tracer(params):
            found.add(f"{name} that closes over a traced value")
        for value in jax.tree.leaves(params, is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                found |= _obstacles(getattr(value, "jaxpr", value))
    return found


def _is_jaxpr(value: Any) -> bool:
    # Closed ones have a class of their own in jax 0.10, and none in 0.12.
    return hasattr(value, "eqns")


def _holds_tracer(value: Any) -> bool:
    """Whether a tracer can be reached from a value, through closures as well."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tracer):
            return True
        # A rule knows the trace that it was met in, with all that was traced so far.
        if id(value) in seen or isinstance(value, _NOT_OF_A_RULE):
            continue
        seen.add(id(value))
        if isinstance(value, types.FunctionType):
            cells = value.__closure__ or ()
            waiting += (c.cell_contents for c in cells if c != types.CellType())
            waiting += value.__defaults__ or ()
        elif not _is_jaxpr(value):
            waiting += gc.get_referents(value)
    return False


def _binding(jaxpr: core.Jaxpr, equation: core.JaxprEqn) -> Callable[..., list[Any]]:
    """One equation as a function of its operands: its own rules go with it."""
    position = {
        variable: place
        for place, variable in enumerate(equation.invars)
        if not isinstance(variable, core.Literal)
    }
    alone = jaxpr.replace(
        constvars=[],
        invars=list(position),
        outvars=equation.outvars,
        eqns=[equation],
        effects=equation.effects,
    )
    return lambda *operands: eval_jaxpr(
        alone, (), *(operands[place] for place in position.values())
    )
