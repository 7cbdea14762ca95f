"""Searches by loss values only, with one interface: lejax, evosax, SPSA.

Adam with gradients is the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

import lejax
from experiments.applications.gradient_free.search import (
    Loss,
    Numbers,
    Search,
    Searcher,
)
from experiments.common.methods import backpropagation


def optimizer(
    chain: Callable[[Numbers, jax.Array], Any],
    loss: Loss,
    evaluations: int,
    weights: Callable[[Any], Any] = lambda params: params,
) -> Search:
    """A search by an optax chain, `chain(numbers, key)`.

    With `weights` the gradient is taken at the weights and applied to the parameters,
    straight through the rounding.
    """

    def init(params: Any, key: jax.Array, numbers: Numbers) -> Any:
        return params, chain(numbers, key).init(params)

    def update(state: Any, key: jax.Array, k: Any, batch: Any, numbers: Numbers) -> Any:
        del k
        params, inner = state  # the key of the draws is in `inner`
        zeros = optax.tree.zeros_like(params)
        updates, inner = chain(numbers, key).update(
            zeros, inner, weights(params), value_fn=loss, batch=batch
        )
        return optax.apply_updates(params, updates), inner

    return Search(init, update, lambda state: state[0], evaluations)


def before_adam(
    head: Callable[[Numbers, jax.Array], optax.GradientTransformation],
) -> Callable[[Numbers, jax.Array], Any]:
    """A smoothed gradient, `head(numbers, key)`, followed by Adam."""
    return lambda numbers, key: optax.chain(
        head(numbers, key), optax.adam(numbers["rate"])
    )


def local_entropy(
    *,
    credit: bool,
    shaping: Literal["ranks"] | None = None,
    reduction: bool = True,
    weights: Callable[[Any], Any] = lambda params: params,
) -> Callable[..., Search]:
    """Importance sampling with β by a share of effective samples, or shaped losses."""

    def make(loss: Loss, params: Any, population: int) -> Search:
        del params

        def head(numbers: Numbers, key: jax.Array) -> Any:
            beta = numbers["beta"] if shaping else 1.0
            share = None if shaping else numbers["share"]
            sampler = lejax.importance(
                population,
                shaping=shaping,
                beta_share=share,
                credit=credit,
                reduction=reduction,
            )
            return lejax.local_entropy(
                sampler, numbers["sigma"] ** 2, beta=beta, key=key
            )

        # Credit takes the losses at x as well.
        return optimizer(before_adam(head), loss, population + credit, weights)

    return make


def gaussian(
    covariance: Any,
    weights: Callable[[Any], Any] = lambda params: params,
    **options: Any,
) -> Callable[..., Search]:
    """Importance sampling whose covariance is learnt with the mean."""

    def make(loss: Loss, params: Any, population: int) -> Search:
        del params

        def chain(numbers: Numbers, key: jax.Array) -> Any:
            head = lejax.gaussian(
                lejax.importance(population, beta_share=numbers["share"]),
                numbers["sigma"] ** 2,
                key=key,
                covariance=covariance,
                covariance_rate=numbers["mixing"],
                **options,
            )
            return optax.chain(head, optax.sgd(1.0))

        return optimizer(chain, loss, population, weights)

    return make


def heat(
    weights: Callable[[Any], Any] = lambda params: params,
) -> Callable[..., Search]:
    """The score function, with separate draws for every example."""

    def make(loss: Loss, params: Any, population: int) -> Search:
        del params
        single: Any = {"antithetic": False, "signs_per_draw": min(16, population)}

        def head(numbers: Numbers, key: jax.Array) -> Any:
            sampler = lejax.score_function(population, **single)
            return lejax.heat(sampler, numbers["sigma"] ** 2, key=key)

        # Credit takes the losses at x as well.
        return optimizer(before_adam(head), loss, population + 1, weights)

    return make


def gradient(loss: Loss, params: Any, population: int) -> Search:
    """Back-propagation; a step counts as three evaluations."""
    del params, population

    chain = before_adam(lambda numbers, key: backpropagation())
    return optimizer(chain, loss, 3)


def spsa(loss: Loss, params: Any, population: int) -> Search:
    """Spall's two evaluations at ±c_k Δ with random signs Δ, or means over several Δ.

    a_k = a/(k + 1 + 100)^.602 and c_k = c/(k + 1)^.101, as Spall recommends.
    """
    del params
    pairs = population // 2

    def slope(params: Any, key: jax.Array, width: Any, batch: Any) -> Any:
        signs = optax.tree.random_like(key, params, jax.random.rademacher)
        plus, minus = (
            loss(optax.tree.add_scale(params, by * width, signs), batch)
            for by in (1, -1)
        )
        return optax.tree.scale((plus - minus) / (2 * width), signs)

    def update(state: Any, key: jax.Array, k: Any, batch: Any, numbers: Numbers) -> Any:
        width = numbers["sigma"] / (k + 1) ** 0.101
        slopes = jax.vmap(lambda key: slope(state, key, width, batch))(
            jax.random.split(key, pairs)
        )
        rate = numbers["rate"] / (k + 1 + 100) ** 0.602
        mean = jax.tree.map(lambda leaf: leaf.mean(0), slopes)
        return optax.tree.add_scale(state, -rate, mean)

    return Search(lambda params, key, numbers: params, update, lambda s: s, population)


def searchers(
    samples: int,
    *,
    by_example: bool = False,
    covariances: tuple[str, ...] = (),
    scales: tuple[float, float] = (0.003, 0.3),
    rates: tuple[float, float] = (0.001, 0.1),
    reference: bool = False,
    weights: Callable[[Any], Any] | None = None,
) -> dict[str, Searcher]:
    """All searches, in the order of the tables.

    Args:
        samples: the largest population.
        by_example: whether the loss has credit by example; then lejax is also run
            without credit, and without credit and reduction.
        covariances: the covariances that lejax also learns; with any, it also uses
            ranks.
        scales: the bounds of σ.
        rates: the bounds of Adam's rate.
        reference: whether there is a loss with gradients.
        weights: rounds the parameters to weights, if given. Some searches then also
            draw around the rounded weights and change the parameters straight through.
    """
    try:
        from experiments.applications.gradient_free import evolution
    except ImportError as error:
        raise SystemExit(
            f"evosax cannot be imported ({error}): pip install -e '.[benchmark]'."
        ) from error

    search_of = evolution.search_of
    sigma, rate = {"sigma": scales}, {"rate": rates}
    share = {"share": (0.3, 0.98)}
    many = (samples // 8 * 2, samples)  # even numbers, for pairs
    found = {
        "importance": Searcher(
            local_entropy(credit=by_example), sigma | rate | share, many
        )
    }
    if by_example:
        parts = {
            "importance, no credit": local_entropy(credit=False),
            "importance, direct": local_entropy(credit=False, reduction=False),
        }
        for name, make in parts.items():
            found[name] = Searcher(make, sigma | rate | share, many)
        found["score_function"] = Searcher(heat(), sigma | rate, many)
    mixing = {"mixing": (0.03, 0.5)}
    if covariances:
        ranks = local_entropy(credit=False, shaping="ranks")
        beta = {"beta": (0.3, 30.0)}
        found["importance, ranks"] = Searcher(ranks, sigma | rate | beta, many)
    for covariance in covariances:
        found[f"gaussian, {covariance}"] = Searcher(
            gaussian(covariance), sigma | share | mixing, (16, *many)
        )
    found["OpenES"] = Searcher(
        search_of(evolution.open_es, width_in_params=False), sigma | rate, many
    )
    found["PGPE"] = Searcher(search_of(evolution.pgpe), sigma | rate, many)
    for name, with_own_rates in (
        ("SNES", evolution.snes),
        ("Sep_CMA_ES", evolution.sep_cma_es),
        ("LM_MA_ES", evolution.lm_ma_es),
    ):
        found[name] = Searcher(search_of(with_own_rates), dict(sigma), (16, *many))
    if weights is not None:
        wide = {"sigma": (0.03, 3.0)}  # of weights of ±1
        direct = local_entropy(credit=False, reduction=False, weights=weights)
        straight: dict[str, tuple[Any, Any]] = {
            "importance": (local_entropy(credit=True, weights=weights), rate | share),
            "importance, direct": (direct, rate | share),
            "score_function": (heat(weights), rate),
            "OpenES": (
                search_of(evolution.open_es, width_in_params=False, weights=weights),
                rate,
            ),
            "SNES": (search_of(evolution.snes, weights=weights), {}),
        }
        for covariance in covariances:
            learnt = gaussian(covariance, weights), share | mixing
            straight[f"gaussian, {covariance}"] = learnt
        for name, (make, mine) in straight.items():
            label = f"{name}, straight through"
            found[label] = Searcher(make, wide | mine, many, "weights")
    found["SPSA"] = Searcher(spsa, sigma | {"rate": (0.001, 10.0)}, (2, 20))
    if reference:
        found["gradient"] = Searcher(gradient, dict(rate), (1,), "reference")
    return found
