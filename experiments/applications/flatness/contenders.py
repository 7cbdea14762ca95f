"""The methods that are compared for flatness, each at its rate and its scale.

The rule that takes the gradient, smoothed or not, is SGD with momentum .9, except for
plain SGD and Adam. Every rate falls to 0 by half a cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lejax
from experiments.common.methods import backpropagation, robbins_monro_step_size

Transformation = optax.GradientTransformationExtraArgs


class Contender(NamedTuple):
    """A method and its choices.

    Attributes:
        make: `make(rate, scale, key)`, the whole optimiser; the rate is a schedule.
        rates: the learning rates η to choose from.
        scales: the scales to choose from: ρ of SAM, τ of lejax; unused by the others.
        batches: the number of batches of an update, which are used one after the other.
    """

    make: Callable[[optax.Schedule, Any, jax.Array], Transformation]
    rates: tuple[float, ...]
    scales: tuple[float, ...] = (0.0,)
    batches: int = 1


def cosine(rate: Any, updates: Any) -> optax.Schedule:
    """Half a cosine down to 0; unlike optax's own, both arguments may be traced."""
    return lambda k: rate * (1 + jnp.cos(jnp.pi * jnp.minimum(k / updates, 1))) / 2


def plain(rule: Callable[[Any], optax.GradientTransformation]) -> Callable[..., Any]:
    """Back-propagation, followed by a rule."""
    return lambda rate, scale, key: optax.chain(backpropagation(), rule(rate))


def momentum(rate: Any) -> optax.GradientTransformation:
    """SGD with momentum, the rule that all other methods use."""
    return optax.sgd(rate, momentum=0.9)


def sam(rate: optax.Schedule, scale: Any, key: jax.Array) -> Transformation:
    """SAM: the gradient at x + ρ ∇f/|∇f|, on the same batch as ∇f."""
    del key
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(scale))
    whole = optax.contrib.sam(momentum(rate), adversary, opaque_mode=True)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value_fn: Any = None,
        batch: Any = None,
    ) -> tuple[Any, Any]:
        def again(x: Any, step: Any) -> Any:
            del step
            return jax.grad(value_fn)(x, batch)

        return whole.update(updates, state, params, grad_fn=again)

    return optax.chain(backpropagation(), Transformation(whole.init, update))


def entropy_sgd(rate: optax.Schedule, scale: Any, key: jax.Array) -> Transformation:
    """Entropy-SGD of Chaudhari et al., L = 20, with their scoping of γ = 1/τ."""
    del scale
    return lejax.entropy_sgd(rate, lejax.scoping(1e4, 1e-3), key=key)


def local_entropy(sampler: Callable[[Any], lejax.Sampler]) -> Callable[..., Any]:
    """The gradient of local entropy at τ, by a sampler that may depend on it."""

    def make(rate: optax.Schedule, tau: Any, key: jax.Array) -> Transformation:
        head = lejax.local_entropy(sampler(tau), tau, key=key)
        return optax.chain(head, momentum(rate))

    return make


def heat(sampler: lejax.Sampler) -> Callable[..., Any]:
    """The gradient of the heat-regularised loss at τ."""

    def make(rate: optax.Schedule, tau: Any, key: jax.Array) -> Transformation:
        return optax.chain(lejax.heat(sampler, tau, key=key), momentum(rate))

    return make


def contenders(samples: int = 64, few: int = 20) -> dict[str, Contender]:
    """All methods by name, in the order of the tables.

    Args:
        samples: J of the methods without gradients.
        few: the number of gradients of an update of `sgld` and of `robbins_monro`.
    """
    # Single draws: for nearly linear losses, pairs have twice the noise.
    single: Any = {"antithetic": False, "signs_per_draw": 16}
    rates, taus = (0.03, 0.1, 0.3, 1.0), (0.001, 0.01, 0.1)

    def chain(tau: Any) -> lejax.Sampler:
        # At temperature 1 the noise of such a short chain exceeds the gradient.
        return lejax.sgld(few, 0.2 * tau, temperature=1e-6)

    moves = lejax.robbins_monro(few // 2, 2, robbins_monro_step_size)
    return {
        "SGD": Contender(plain(optax.sgd), (0.1, 0.3, 1.0, 3.0)),
        "momentum": Contender(plain(momentum), rates),
        "Adam": Contender(plain(optax.adam), (0.001, 0.003, 0.01, 0.03)),
        "SAM": Contender(sam, rates, (0.02, 0.05, 0.2)),
        "Entropy-SGD": Contender(entropy_sgd, (0.1, 0.3, 1.0, 3.0), batches=20),
        "sgld": Contender(local_entropy(chain), rates, taus),
        "importance": Contender(
            local_entropy(lambda tau: lejax.importance(samples)), rates, taus
        ),
        "importance_by_example": Contender(
            local_entropy(lambda tau: lejax.importance_by_example(samples, **single)),
            rates,
            taus,
        ),
        "robbins_monro": Contender(heat(moves), (0.1, 0.3, 1.0, 3.0), taus),
        "pathwise": Contender(heat(lejax.pathwise(2)), rates, taus),
        "score_function": Contender(
            heat(lejax.score_function(samples, **single)), rates, taus
        ),
    }
