"""Named axes, whose members share the draws or hold parts of the batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lejax._internal.types import PyTree


def check_axes(axis_name: str | None, data_axis_name: str | None) -> None:
    """Refuse one axis for both."""
    if axis_name is not None and axis_name == data_axis_name:
        raise ValueError(
            f"axis_name and data_axis_name are both {axis_name!r}; members that share "
            "the draws hold the same data: use two axes, or leave one of them out."
        )


def check_bound(axis_name: str | None, data_axis_name: str | None) -> None:
    """Refuse the name of an axis that no transformation around has bound."""
    for argument, name in (
        ("axis_name", axis_name),
        ("data_axis_name", data_axis_name),
    ):
        if name is not None and not is_bound(name):
            raise ValueError(
                f"{argument}={name!r} is not bound; call the sampler inside jax.vmap, "
                "jax.pmap or jax.shard_map with an axis of that name, or leave it out."
            )


def is_bound(axis_name: str) -> bool:
    """Whether a transformation around has an axis of that name."""
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def members(axis_name: str | None) -> int:
    """How many members the axis has; 1 without an axis."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def member(axis_name: str | None) -> Any:
    """The number of this one among them."""
    return 0 if axis_name is None else jax.lax.axis_index(axis_name)


def varying(tree: PyTree, axis_name: str | None) -> PyTree:
    """The same numbers, as `jax.shard_map` wants what will differ over the axis."""
    if axis_name is None:
        return tree
    nothing = 0 * jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), tree)


def mean_over(tree: PyTree, axis_name: str | None) -> PyTree:
    """The mean of what the members have."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def gathered(part: jax.Array, axis_name: str | None) -> jax.Array:
    """The parts of all members, on a leading axis of members.

    By a sum with zeros: what `jax.lax.all_gather` returns counts as different from one
    member to the other, and so would all that is computed from it.
    """
    if axis_name is None:
        return part[None]
    parts = jnp.zeros((members(axis_name), *part.shape), part.dtype)
    whole = jax.lax.psum(parts.at[member(axis_name)].set(part), axis_name)
    return whole.astype(part.dtype)
