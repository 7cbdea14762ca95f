"""A traced loss as a flat list of operations, which can be read and run in parts.

Calls of `jax.jit` are inlined. Every other operation stays whole and is bound again as
it was traced, also custom derivative rules and loops.
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

# The names of the primitive of `jax.jit` in the versions of jax.
_JIT = ("jit", "pjit")

# Types that a custom rule refers to without holding their contents.
_NEVER_SEARCHED = (Trace, type, types.ModuleType, jax.Array)


class Operation(NamedTuple):
    """One primitive, applied to numbered values.

    Attributes:
        name: the name of the primitive.
        params: the parameters of the primitive.
        inputs: the numbers of its operands.
        outputs: the numbers of its results.
        bind: evaluates the operation at the values of its operands.
    """

    name: str
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bind: Callable[..., list[Any]]


class Program(NamedTuple):
    """Operations in an order in which they can run, without dead code.

    Attributes:
        operations: the operations.
        inputs: the numbers of the arguments' leaves, in their order.
        constants: the values of literals and closed-over arrays, by number.
        shapes: the abstract value (`.shape`, `.dtype`) of every value, by number.
        output: the number of the result.
        obstacles: why it cannot run in parts: side effects, a collective over a named
            axis, or a custom rule that closes over a tracer.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    constants: dict[int, Any]
    shapes: dict[int, Any]
    output: int
    obstacles: frozenset[str]

    def why_not_in_parts(self) -> str:
        """The reason why it cannot run in parts; empty if it can."""
        if not self.obstacles:
            return ""
        return f"the loss cannot be run in parts: {', '.join(sorted(self.obstacles))}"

    def run(self, operations: Iterable[Operation], values: dict[int, Any]) -> None:
        """Runs some of the operations: reads operands from `values`, adds results."""
        for operation in operations:
            operands = (values[number] for number in operation.inputs)
            results = operation.bind(*operands)
            values.update(zip(operation.outputs, results, strict=True))

    def source(self, number: int) -> int:
        """The value that `pvary` copied to every member of a mesh, or the value."""
        copies = {
            operation.outputs[0]: operation.inputs[0]
            for operation in self.operations
            if operation.name == "pvary"
        }
        return copies.get(number, number)

    def dependents(self, numbers: Iterable[int]) -> set[int]:
        """These values, and all values that are computed from them."""
        dependent = set(numbers)
        for operation in self.operations:
            if not dependent.isdisjoint(operation.inputs):
                dependent.update(operation.outputs)
        return dependent


def trace(fn: Callable[..., Any], *args: Any) -> Program:
    """The program of a function of pytrees of arrays with one result."""
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
        variables = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, closed.consts, strict=True):
            variables[variable] = constant(variable.aval, value)

        def number_of(atom: Any) -> int:
            if isinstance(atom, core.Literal):
                aval: Any = atom.aval
                return constant(aval, jnp.asarray(atom.val, aval.dtype))
            return variables[atom]

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
            variables.update(zip(equation.outvars, outputs, strict=True))
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
    """Operations that name an axis, and custom rules that close over a tracer.

    Not every operation that names an axis counts as an effect. A tracer is dead when
    the rule is bound again.
    """
    obstacles = set()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, list(equation.params.values())
        if "axis_name" in equation.params:
            obstacles.add(name)
        if name.startswith("custom_") and _holds_tracer(params):
            obstacles.add(f"{name} that closes over a traced value")
        for value in jax.tree.leaves(params, is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                obstacles |= _obstacles(getattr(value, "jaxpr", value))
    return obstacles


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


def _binding(jaxpr: core.Jaxpr, equation: core.JaxprEqn) -> Callable[..., list[Any]]:
    """One equation as a function of its operands, with its custom rules."""
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
