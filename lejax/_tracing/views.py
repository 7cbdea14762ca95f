"""Views of a leaf: operations that keep all its entries, in another layout or dtype."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from lejax._tracing.program import Operation, Program


class UnknownUseError(Exception):
    """A use that disqualifies the leaf; the message is the reason in the report."""


def axes_of_view(
    program: Program, operation: Operation, axes: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The axes of the leaf in the result of a transpose or of a widening cast.

    `axes` are its axes in the operand. Returns None for other operations.
    """
    if operation.name == "transpose":
        return tuple(axes[i] for i in operation.params["permutation"])
    if operation.name == "convert_element_type":
        before = program.shapes[operation.inputs[0]].dtype
        after = program.shapes[operation.outputs[0]].dtype
        # A narrowing cast rounds, so it is no view.
        if jnp.issubdtype(after, jnp.floating) and (
            jnp.finfo(after).nmant >= jnp.finfo(before).nmant
            and jnp.finfo(after).maxexp >= jnp.finfo(before).maxexp
        ):
            return axes
    return None


def follow_views(
    program: Program, number: int, consumers: dict[int, list[Operation]]
) -> tuple[tuple[Operation, ...], Operation, int]:
    """The views of a leaf, the one operation that then uses it, and its operand.

    A reshape and a broadcast count as views here.
    """
    if jnp.finfo(program.shapes[number].dtype).bits < 32:
        raise UnknownUseError("its points are rounded at random: half precision")
    views: list[Operation] = []
    while True:
        after = consumers.get(number, [])
        if not after:
            raise UnknownUseError("the loss does not use it")
        if len(after) > 1 or after[0].inputs.count(number) > 1:
            raise UnknownUseError("used more than once")
        operation = after[0]
        axes = tuple(range(len(program.shapes[number].shape)))
        if operation.name not in ("reshape", "broadcast_in_dim") and (
            axes_of_view(program, operation, axes) is None
        ):
            return tuple(views), operation, number
        views.append(operation)
        number = operation.outputs[0]


def is_sharded(aval: Any) -> bool:
    """Whether a value is laid out over a mesh with explicit axes."""
    spec = getattr(getattr(aval, "sharding", None), "spec", None) or ()
    return any(entry is not None for entry in spec)
