"""The methods of the study: the settings of a run, and its optimizer."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import lejax
from experiments.common.models import Activation, Initialization

Method = Literal["SGD", "IS", "SGLD", "HR"]
Column = Literal["as written", "as published", "lejax"]
Outer = Literal["sgd", "momentum", "adam"]

OUTER: dict[Outer, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """All settings that the curve of a method depends on, except its seed and the data.

    The defaults are the paper's.

    Attributes:
        method: the gradient. SGD is back-propagation, with any rule in `outer`.
        column: "as written" follows the distributions in the paper's formulas; "as
            published" uses as *standard deviation* of noise what they call variance;
            "lejax" is the library's default: antithetic pairs, and no noise in the null
            space.
        tau: the variances τ of the smoothing; there is a run for each.
        scoping_rate: τ is divided by 1 + this in every update.
        beta: the inverse temperature.
        learning_rates: there is a run for each; None is the paper's βτ.
        outer: the rule that takes the smoothed gradient.
        cosine: whether the learning rate falls to 0 by half a cosine.
        samples: J of importance sampling and of the Langevin chain.
        moves: J and M of Robbins-Monro.
        first_step: the step size is ε_j = 1/(first_step + j).
        warm_start: whether a chain starts at the end of the chain before.
        direct: whether to draw in all dimensions, by plain estimators. For "as written"
            and "as published" the distribution is the same, at many times the cost.
        hidden: the number of hidden units; 0 is the network without a hidden layer.
        activation: the activation of the hidden layer.
        initialization: the initialisation of the weights.
        batch_size: the number of training images of an update.
        sgd_updates: the number of plain steps, at rate τ, before the method starts.
        updates: the number of updates of the method.
        evaluations: the number of evaluations of the accuracy, equally spaced.
        test_images: the number of random images for the accuracy, at most all.
        validation: train on five sixths of the training images, test on the others.
    """

    method: Method
    column: Column = "as written"
    tau: tuple[float, ...] = (0.01,)
    scoping_rate: float = 0.0
    beta: float = 1.0
    learning_rates: tuple[float, ...] | None = None
    outer: Outer = "sgd"
    cosine: bool = False
    samples: int = 1000
    moves: int = 30
    first_step: int = 1000
    warm_start: bool = True
    direct: bool = False
    hidden: int = 200
    activation: Activation = "tanh"
    initialization: Initialization = "glorot"
    batch_size: int = 20
    sgd_updates: int = 0
    updates: int = 500
    evaluations: int = 25
    test_images: int = 1000
    validation: bool = False


@dataclasses.dataclass(frozen=True)
class Controlled(Run):
    """A run that starts at τ; a controller then follows a share of effective samples.

    Attributes:
        share: the share of samples to be effective, at the start and at the end; it
            changes linearly.
        gain: the gain of the controller.
    """

    share: tuple[float, float] = (0.5, 0.5)
    gain: float = 0.1


def langevin_step_size(j: Any, first_step: int = 1000) -> Any:
    """ε_j = 1/(1000 + j); the first step, j = 0 here, is the paper's j = 1."""
    return 1.0 / (first_step + 1 + j)


def robbins_monro_step_size(j: Any) -> Any:
    """a_j = 0.1 j^-0.7; the first step, j = 0 here, is the paper's j = 1."""
    return 0.1 * jnp.asarray(j + 1, jnp.float32) ** -0.7


def backpropagation() -> optax.GradientTransformationExtraArgs:
    """The plain gradient at the head of a chain, in place of lejax's smoothed one."""

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value_fn: Any = None,
        batch: Any = None,
    ) -> tuple[Any, Any]:
        del updates
        return jax.grad(value_fn)(params, batch), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def sampler(run: Run, tau: Any) -> lejax.Sampler:
    """The sampler of a run; `tau` is the paper's, from which the column's follows.

    Several devices, of this or other processes, share the draws.
    """
    chosen = _sampler(run, tau)
    return lejax.parallel(chosen) if jax.device_count() > 1 else chosen


def _sampler(run: Run, tau: Any) -> lejax.Sampler:
    lean = run.column == "lejax"
    # These options do not change the distribution of the paper's process.
    law: dict[str, Any] = {"reduction": not run.direct}
    in_law: Any = law | {"sample_complement": not (lean or run.direct)}
    if run.method == "IS":
        return lejax.importance(run.samples, antithetic=lean, **in_law)
    if run.method == "SGLD":

        def step_size(j: Any) -> Any:
            return langevin_step_size(j, run.first_step)

        return lejax.sgld(
            run.samples,
            step_size,
            temperature=1.0 if run.column == "as written" else step_size,
            warm_start=run.warm_start,
            **in_law,
        )
    return lejax.robbins_monro(
        run.moves,
        run.moves,
        robbins_monro_step_size,
        smoothing=tau**2 if run.column == "as published" else None,
        antithetic=lean,
        **law,
    )


def optimizer(
    run: Run, tau: Any, learning_rate: Any, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """The method at one τ and one learning rate; a rate of None is βτ."""
    if run.method == "IS" and run.column == "as published":
        tau = tau**2
    if isinstance(run, Controlled):
        # With as few samples as a quick run has, shares have a larger lower bound.
        least = math.sqrt(10 / run.samples)
        first, last = (max(share, (1 + 1e-6) * least) for share in run.share)
        share = optax.linear_schedule(first, last, run.updates)
        tau = lejax.target_share(share, tau, gain=run.gain)
        head = lejax.local_entropy(
            sampler(run, tau), tau, key=key, beta=run.beta, displacement=True
        )
        return optax.chain(head, optax.sgd(1.0))
    if run.scoping_rate:
        tau = lejax.scoping(tau, run.scoping_rate)
    if run.method == "SGD":
        head = backpropagation()
    elif run.method == "HR":
        head = lejax.heat(sampler(run, tau), tau, key=key)
    else:
        with warnings.catch_warnings():
            # The paper keeps its chain between updates, at a rate that is stable.
            warnings.filterwarnings("ignore", "warm_start=True")
            head = lejax.local_entropy(sampler(run, tau), tau, key=key, beta=run.beta)

    def paper(k: Any) -> Any:
        return run.beta * lejax.scoping(run.tau[0], run.scoping_rate)(k)

    if learning_rate is None:
        rate: Any = paper if run.scoping_rate else run.beta * tau
    else:
        rate = learning_rate
    if run.cosine:
        rate = optax.cosine_decay_schedule(rate, run.updates)
    return optax.chain(head, OUTER[run.outer](rate))
