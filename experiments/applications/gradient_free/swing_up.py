"""Cart-pole swing-up: a force of at most 10 N swings a pole up and holds it there.

The masses, the lengths and the equations are from Barto, Sutton and Anderson.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.applications.gradient_free import problem
from experiments.common import data

GRAVITY, CART, POLE, HALF_LENGTH, FORCE = 9.8, 1.0, 0.1, 0.5, 10.0
SECONDS_PER_STEP, STEPS, TRACK = 0.02, 250, 2.4
HIDDEN = 16
STARTS, TESTS = 8, 256


def problems(
    dataset: data.Dataset | None = None, *, quick: bool = False
) -> dict[str, problem.Problem]:
    """Two problems: easy starts near the top, and hard ones at the bottom."""
    del dataset
    steps = 20 if quick else STEPS

    def starts(name: str, key: jax.Array, number: int) -> jax.Array:
        """x, ẋ, θ, θ̇ of some episodes; θ is 0 at the top."""
        spread = jnp.array([0.5, 0.1, 1.0 if name == "easy" else 0.2, 0.1])
        bottom = jnp.array([0.0, 0.0, 0.0 if name == "easy" else jnp.pi, 0.0])
        return bottom + spread * jax.random.uniform(key, (number, 4), minval=-1)

    def problem_of(name: str, level: float) -> problem.Problem:
        def tests(seed: int, validation: bool) -> Any:
            key = jax.random.fold_in(jax.random.key(seed), 1 + int(validation))
            return {"test": starts(name, key, TESTS)}

        return problem.Problem(
            params=params,
            data=tests,
            # All samples of an update share the starts.
            batch=lambda key, data: starts(name, key, STARTS),
            loss=lambda params, batch: -mean_return(params, batch, steps),
            score=lambda params, data: mean_return(params, data["test"], steps),
            level=level,
            measure="mean return",
            covariances=("diagonal", "full"),
            scales=(0.03, 1.0),
        )

    return {"easy": problem_of("easy", 0.8), "hard": problem_of("hard", 0.5)}


def params(seed: int) -> Any:
    """A policy with one hidden layer and 113 parameters."""
    first, second = jax.random.split(jax.random.key(seed))
    return problem.dense(first, 5, HIDDEN), problem.dense(second, HIDDEN, 1)


def push(params: Any, state: jax.Array) -> jax.Array:
    """The force on the cart, in N."""
    hidden, last = params
    x, speed, angle, turning = state
    seen = jnp.stack([x, speed, jnp.cos(angle), jnp.sin(angle), turning / 4])
    units = jnp.tanh(seen @ hidden["kernel"] + hidden["bias"])
    return FORCE * jnp.tanh(units @ last["kernel"] + last["bias"])[0]


def move(state: jax.Array, force: jax.Array) -> jax.Array:
    """The state after one step."""
    x, speed, angle, turning = state
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    mass = CART + POLE
    inner = (force + POLE * HALF_LENGTH * turning**2 * sine) / mass
    angular = (GRAVITY * sine - cosine * inner) / (
        HALF_LENGTH * (4 / 3 - POLE * cosine**2 / mass)
    )
    linear = inner - POLE * HALF_LENGTH * angular * cosine / mass
    speed = speed + SECONDS_PER_STEP * linear
    turning = turning + SECONDS_PER_STEP * angular
    return jnp.stack(
        [
            x + SECONDS_PER_STEP * speed,
            speed,
            angle + SECONDS_PER_STEP * turning,
            turning,
        ]
    )


def mean_return(params: Any, starts: jax.Array, steps: int) -> jax.Array:
    """The mean of height of the pole times closeness of the cart to 0, in [0, 1]."""

    def episode(state: jax.Array) -> jax.Array:
        def step(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            state = move(state, push(params, state))
            height = (1 + jnp.cos(state[2])) / 2
            return state, height * jnp.exp(-((state[0] / TRACK) ** 2))

        return jax.lax.scan(step, state, length=steps)[1].mean()

    return jax.vmap(episode)(starts).mean()
