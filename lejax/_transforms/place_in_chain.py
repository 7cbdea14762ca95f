"""Whether a smoothing stands at the head of its optax chain, with a step behind it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any


def check_place(*, replaces_all: bool) -> bool:
    """Warn if a chain ends without a descent step, or discards its first parts.

    A transformation cannot see its neighbours, and either mistake is silent. The chain
    is therefore read off the call stack, also while `jax.jit` traces. Anything but
    `optax.chain` and `optax.named_chain` is passed over.

    Args:
        replaces_all: whether no incoming update is used, as without a mask.

    Returns:
        Whether it warned.
    """
    chains = list(_running_chains(sys._getframe(1)))
    if chains and all(place == count - 1 for place, count in chains):
        message = (
            "nothing follows local_entropy, heat or gaussian in the chain, which then "
            "returns a gradient: adding it to the parameters climbs; append a descent "
            "step, as in optax.chain(smooth, optax.sgd(learning_rate))."
        )
    elif replaces_all and any(place > 0 for place, _ in chains):
        message = (
            "local_entropy, heat or gaussian replaces the updates that come in, so "
            "the transformations before it in the chain have no effect; put it first."
        )
    else:
        return False
    warnings.warn(message, stacklevel=4)
    return True


def _running_chains(frame: FrameType | None) -> Iterator[tuple[int, int]]:
    """The place at work in each running chain, and the chain's length."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("optax."):
            found = _links(frame.f_locals)
            if found is not None and found[0] in found[1]:
                yield found[1].index(found[0]), len(found[1])
        frame = frame.f_back


def _links(names: dict[str, Any]) -> tuple[Any, Sequence[Any]] | None:
    """The part at work, and all parts, by the names that optax has for them."""
    if {"fn", "update_fns"} <= names.keys():
        return names["fn"], names["update_fns"]
    if {"tx", "transforms", "name"} <= names.keys():
        return names["tx"], [tx for _, tx in names["transforms"]]
    return None
