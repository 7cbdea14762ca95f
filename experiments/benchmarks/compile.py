"""The compiled program of an update of every sampler, and its CPU seconds."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from jax.flatten_util import ravel_pytree

import lejax
from experiments.common import results

INPUTS, HIDDEN, OUTPUTS, BATCH = 784, 200, 10, 20


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings."""

    samples: int = 1000
    """J of an update."""
    output: Path = Path("results")
    """Folder for compile.json."""


class Program(NamedTuple):
    """An update: its number of equations and of fused kernels, and CPU seconds."""

    equations: int
    fusions: int
    lowering: float
    compiling: float


def quadratic(x: jax.Array) -> jax.Array:
    """|x|²/2."""
    return jnp.sum(x**2) / 2


def network(params: dict[str, jax.Array], batch: Any) -> jax.Array:
    """The paper's network of 159,010 parameters."""
    inputs, labels = batch
    hidden = jnp.tanh(inputs @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def network_problem() -> tuple[dict[str, jax.Array], Any]:
    """The parameters of the network, and a batch."""
    params = {
        "w1": jnp.zeros((INPUTS, HIDDEN)),
        "b1": jnp.zeros(HIDDEN),
        "w2": jnp.zeros((HIDDEN, OUTPUTS)),
        "b2": jnp.zeros(OUTPUTS),
    }
    return params, (jnp.zeros((BATCH, INPUTS)), jnp.zeros(BATCH, int))


def by_hand(value_fn: Callable[..., jax.Array], samples: int) -> Callable[..., Any]:
    """The same estimate, written by hand: antithetic pairs, two passes.

    It computes F with its error, the effective samples, and the noise by ten groups.
    """

    def update(params: Any, key: jax.Array, *batch: Any) -> Any:
        flat, unravel = ravel_pytree(params)
        keys = jax.random.split(key, 10)
        size, tau = samples // 20, 0.01

        def draw(key: jax.Array) -> jax.Array:
            return jnp.sqrt(tau) * jax.random.normal(key, (size, flat.size))

        def losses_of(key: jax.Array) -> jax.Array:
            def at(sign: jax.Array, u: jax.Array) -> jax.Array:
                return value_fn(unravel(flat + sign * u), *batch)

            signed = jax.vmap(jax.vmap(at, (None, 0)), (0, None))
            return signed(jnp.array([1.0, -1.0]), draw(key))

        losses = jax.lax.map(losses_of, keys)
        top = (-losses).max()
        w = jnp.exp(-losses - top)
        total = w.sum()
        w = w / total
        units = w.sum(1)
        error = jnp.sqrt(jnp.square(units - units.mean()).sum())
        signed = w[:, 0] - w[:, 1]
        groups = jax.lax.map(lambda pair: pair[1] @ draw(pair[0]), (keys, signed))
        moved = groups.sum(0)
        left = groups - units.sum(1)[:, None] * moved
        told = top + jnp.log(total / samples), error, 1 / jnp.square(w).sum()
        return unravel(moved), (*told, jnp.square(left).sum() * 10 / 9)

    return update


def samplers(samples: int) -> dict[str, lejax.Sampler]:
    """Every sampler, at the paper's sizes."""
    return {
        "importance": lejax.importance(samples),
        "importance, direct": lejax.importance(samples, reduction=False, credit=False),
        "score_function": lejax.score_function(samples),
        "importance_by_example": lejax.importance_by_example(64),
        "pathwise": lejax.pathwise(20),
        "sgld": lejax.sgld(samples, 0.001),
        "robbins_monro": lejax.robbins_monro(30, 30, 0.1),
    }


def updates(samples: int) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Names, functions and their arguments."""
    key = jax.random.key(0)

    def of(tx: Any, value_fn: Any, params: Any, batch: Any) -> tuple[Any, Any]:
        def update(state: Any, params: Any) -> Any:
            return tx.update(None, state, params, value_fn=value_fn, batch=batch)

        return update, (tx.init(params), params)

    def head(sampler: lejax.Sampler) -> Any:
        if sampler.regularization == "heat":
            return lejax.heat(sampler, 0.01, key=key)
        return lejax.local_entropy(sampler, 0.01, key=key)

    x, (params, batch) = jnp.ones(10), network_problem()
    yield "quadratic, back-propagation", jax.value_and_grad(quadratic), (x,)
    yield "quadratic, by hand", by_hand(quadratic, samples), (x, key)
    for name, sampler in samplers(samples).items():
        if "example" not in name and "direct" not in name:
            yield f"quadratic, {name}", *of(head(sampler), quadratic, x, None)
    gaussian = lejax.gaussian(lejax.importance(samples), 0.01, key=key)
    yield "quadratic, gaussian", *of(gaussian, quadratic, x, None)
    yield "network, back-propagation", jax.value_and_grad(network), (params, batch)
    yield "network, by hand", by_hand(network, samples), (params, key, batch)
    for name, sampler in samplers(samples).items():
        yield f"network, {name}", *of(head(sampler), network, params, batch)


def equations(jaxpr: Any) -> int:
    """The number of equations of a jaxpr and of all jaxprs inside of it."""
    inner = (
        getattr(value, "jaxpr", value)
        for step in jaxpr.eqns
        for value in jax.tree.leaves(
            list(step.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
        )
        if hasattr(value, "eqns")
    )
    return len(jaxpr.eqns) + sum(map(equations, inner))


def measured(fn: Callable[..., Any], args: tuple[Any, ...]) -> Program:
    """Lowers and compiles one program."""
    start = time.process_time()
    traced = jax.jit(fn).trace(*args)
    lowered = traced.lower()
    lowering = time.process_time() - start
    text = lowered.compile().as_text()
    compiling = time.process_time() - start - lowering
    assert text is not None
    fusions = len(re.findall(r" fusion\(", text))
    return Program(
        equations(traced.jaxpr.jaxpr), fusions, round(lowering, 2), round(compiling, 2)
    )


def main(config: Config) -> None:
    """Compile each, print a table, and write it down."""
    found = {name: measured(fn, args) for name, fn, args in updates(config.samples)}
    print("| update | equations | fusions | CPU s to lower | to compile |")
    print("| --- | --- | --- | --- | --- |")
    for name, program in found.items():
        print(f"| {name} | {' | '.join(f'{value:g}' for value in program)} |")
    programs = {name: program._asdict() for name, program in found.items()}
    results.write_json(config.output / "compile.json", config, programs=programs)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
