"""What a search is: pure functions, and what is to be chosen for it."""

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
        params: `params(state)`, where the search is: its mean.
        evaluations: of the loss in an update; of a gradient three.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    params: Callable[[Any], Any]
    evaluations: int


class Searcher(NamedTuple):
    """A method and what is to be chosen for it.

    Attributes:
        make: `make(loss, params, population)`, the search.
        ranges: of its numbers, which are drawn on a logarithmic scale.
        populations: J or λ to choose from.
        uses: the loss that it searches: the objective, its reference's, or that of
            weights which need not be rounded.
    """

    make: Callable[[Loss, Any, int], Search]
    ranges: dict[str, tuple[float, float]]
    populations: tuple[int, ...]
    uses: Literal["objective", "weights", "reference"] = "objective"
