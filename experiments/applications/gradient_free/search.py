"""The interface of searches: pure functions, and the choices to be made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax

Loss = Callable[[Any, Any], jax.Array]  # (params, batch) -> scalar
Numbers = Mapping[str, Any]


class Search(NamedTuple):
    """A search as pure functions.

    Attributes:
        init: `init(params, key, numbers)`, the state.
        update: `update(state, key, k, batch, numbers)`, the state after update k.
        params: `params(state)`, the mean of the search.
        evaluations: the evaluations of the loss by an update; a gradient counts three.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    params: Callable[[Any], Any]
    evaluations: int


class Searcher(NamedTuple):
    """A method and its choices.

    Attributes:
        make: `make(loss, params, population)`, the search.
        ranges: the ranges of its numbers, which are drawn on a logarithmic scale.
        populations: the populations J or λ to choose from.
        uses: the loss that it uses: the objective, its reference, or the loss of
            weights that need not be rounded.
    """

    make: Callable[[Loss, Any, int], Search]
    ranges: dict[str, tuple[float, float]]
    populations: tuple[int, ...]
    uses: Literal["objective", "weights", "reference"] = "objective"
