"""Named axes, whose members share the draws or hold parts of the batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lejax._internal.types import PyTree


def check_axes(axis_name: str | None, data_axis_name: str | None) -> None:
    """Raises if both arguments name the same axis."""
    if axis_name is not None and axis_name == data_axis_name:
        raise ValueError(
            f"axis_name and data_axis_name are both {axis_name!r}; members that share "
            "the draws hold the same data: use two axes, or leave one of them out."
        )


def check_bound(axis_name: str | None, data_axis_name: str | None) -> None:
    """Raises for an axis that no surrounding transformation has bound."""
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
    """Whether a surrounding transformation has an axis of that name."""
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def members(axis_name: str | None) -> int:
    """The number of members of the axis; 1 without an axis."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def member(axis_name: str | None) -> Any:
    """The index of this member along the axis; 0 without an axis."""
    return 0 if axis_name is None else jax.lax.axis_index(axis_name)


def varying(tree: PyTree, axis_name: str | None) -> PyTree:
    """The same values, marked as varying over the axis, as `jax.shard_map` requires."""
    if axis_name is None:
        return tree
    nothing = 0 * jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), tree)


def mean_over(tree: PyTree, axis_name: str | None) -> PyTree:
    """The mean over the members of the axis."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def gathered(part: jax.Array, axis_name: str | None) -> jax.Array:
    """The parts of all members, on a leading axis of members.

    This is a sum with zeros, because `jax.shard_map` counts the result of
    `jax.lax.all_gather`, and all that is computed from it, as varying over the axis.
    """
    if axis_name is None:
        return part[None]
    parts = jnp.zeros((members(axis_name), *part.shape), part.dtype)
    whole = jax.lax.psum(parts.at[member(axis_name)].set(part), axis_name)
    return whole.astype(part.dtype)
