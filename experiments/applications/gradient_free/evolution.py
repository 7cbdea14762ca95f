"""Evolution strategies of evosax as searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from evosax.algorithms import CMA_ES, LM_MA_ES, PGPE, SNES, Open_ES, Sep_CMA_ES

from experiments.applications.gradient_free.search import Loss, Numbers, Search

Strategy = Callable[[int, Any, Numbers], Any]  # (population, params, numbers)


def search_of(
    strategy: Strategy,
    *,
    width_in_params: bool = True,
    weights: Callable[[Any], Any] | None = None,
) -> Callable[..., Search]:
    """A search by a strategy of evosax, with an initial σ.

    With `weights` its members are drawn around the weights, as in `optimizer`.
    """

    def make(loss: Loss, params: Any, population: int) -> Search:
        def made(numbers: Numbers) -> tuple[Any, Any]:
            with jax.ensure_compile_time_eval():  # its default options cannot be traced
                es = strategy(population, params, numbers)
                settings = es.default_params
            if width_in_params:
                settings = settings.replace(std_init=numbers["sigma"])
            return es, settings

        def init(params: Any, key: jax.Array, numbers: Numbers) -> Any:
            es, settings = made(numbers)
            return es.init(key, params, settings)

        def update(
            state: Any, key: jax.Array, k: Any, batch: Any, numbers: Numbers
        ) -> Any:
            del k
            es, settings = made(numbers)
            ask, tell = jax.random.split(key)
            members, state = es.ask(ask, state, settings)
            seen = members
            if weights is not None:
                at = es.get_mean(state)
                shift = optax.tree.sub(weights(at), at)
                seen = jax.tree.map(jax.numpy.add, members, shift)
            losses = jax.vmap(lambda member: loss(member, batch))(seen)
            return es.tell(tell, members, losses, state, settings)[0]

        def mean(state: Any) -> Any:
            return strategy(population, params, {"rate": 0.1}).get_mean(state)

        return Search(init, update, mean, population)

    return make


def open_es(population: int, params: Any, numbers: Numbers) -> Any:
    """OpenES with Adam at a rate, and constant σ."""
    return Open_ES(
        population,
        params,
        optimizer=optax.adam(numbers["rate"]),
        std_schedule=lambda _: numbers.get("sigma", 1.0),
    )


def pgpe(population: int, params: Any, numbers: Numbers) -> Any:
    """PGPE with Adam at a rate."""
    return PGPE(population, params, optimizer=optax.adam(numbers["rate"]))


class Sorted(LM_MA_ES):
    """LM-MA-ES with its draws sorted from the best on, as in Loshchilov et al.

    evosax 0.3.2 assigns the weights, which start with the best, to unsorted draws.
    """

    def _tell(
        self, key: Any, population: Any, fitness: Any, state: Any, params: Any
    ) -> Any:
        best = (-fitness).argsort()  # the members' weights, by their ranks
        state = state.replace(z=state.z[best])
        return super()._tell(key, population[best], fitness[best], state, params)


def with_own_rates(algorithm: Callable[[int, Any], Any]) -> Strategy:
    """A strategy for which only σ is chosen."""
    return lambda population, params, numbers: algorithm(population, params)


snes, cma_es = with_own_rates(SNES), with_own_rates(CMA_ES)
sep_cma_es, lm_ma_es = with_own_rates(Sep_CMA_ES), with_own_rates(Sorted)
