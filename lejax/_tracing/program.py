"""A traced loss as a flat list of operations, which can be read and run in parts.

Calls of `jax.jit` are inlined. Every other equation of the jaxpr becomes one operation,
bound again as it was traced. This includes loops and custom derivative rules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend import core

from lejax._tracing.loss import Loss
from lejax._tracing.obstacles import JIT


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
        """The reason why the program cannot run in parts; empty if it can."""
        if not self.obstacles:
            return ""
        return f"the loss cannot be run in parts: {', '.join(sorted(self.obstacles))}"

    def run(self, operations: Iterable[Operation], values: dict[int, Any]) -> None:
        """Runs these operations: reads operands from `values`, adds the results."""
        for operation in operations:
            operands = (values[number] for number in operation.inputs)
            results = operation.bind(*operands)
            values.update(zip(operation.outputs, results, strict=True))

    def source(self, number: int) -> int:
        """The operand of `pvary` if this value is its result; else the value itself."""
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


def program_of(loss: Loss) -> Program:
    """The program of a loss."""
    program = read(loss.jaxpr, loss.constants)
    return program._replace(obstacles=loss.obstacles)


def read(jaxpr: core.Jaxpr, values: Iterable[Any], output: int = 0) -> Program:
    """The program of one result of a jaxpr, with these constants."""
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

    def walk(
        jaxpr: core.Jaxpr, values: Iterable[Any], arguments: Iterable[int]
    ) -> list[int]:
        variables = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, values, strict=True):
            variables[variable] = constant(variable.aval, value)

        def number_of(atom: Any) -> int:
            if isinstance(atom, core.Literal):
                aval: Any = atom.aval
                return constant(aval, jnp.asarray(atom.val, aval.dtype))
            return variables[atom]

        for equation in jaxpr.eqns:
            inputs = tuple(map(number_of, equation.invars))
            if equation.primitive.name in JIT:
                inner = equation.params["jaxpr"]
                outputs = walk(inner.jaxpr, inner.consts, inputs)
            else:
                outputs = [new(variable.aval) for variable in equation.outvars]
                operations.append(
                    Operation(
                        equation.primitive.name,
                        equation.params,
                        inputs,
                        tuple(outputs),
                        binding(jaxpr, equation),
                    )
                )
            variables.update(zip(equation.outvars, outputs, strict=True))
        return [number_of(atom) for atom in jaxpr.outvars]

    values = list(values)
    closed = len(jaxpr.constvars)
    known = values[closed:]
    own = len(jaxpr.invars) - len(known)
    inputs = [new(variable.aval) for variable in jaxpr.invars[:own]]
    others = [
        constant(variable.aval, value)
        for variable, value in zip(jaxpr.invars[own:], known, strict=True)
    ]
    result = walk(jaxpr, values[:closed], [*inputs, *others])[output]

    needed = {result}
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
        result,
        frozenset(),
    )


def binding(jaxpr: core.Jaxpr, equation: core.JaxprEqn) -> Callable[..., list[Any]]:
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
