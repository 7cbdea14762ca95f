"""Measures of the flatness of a loss at a point: Hessian, smoothing, steps, noise.

The functions take a loss f of the parameters alone, or an accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from matfree import decomp, eig, stochtrace

import lejax

Loss = Callable[[Any], jax.Array]


class Estimate(NamedTuple):
    """A mean over draws, and its standard error."""

    mean: jax.Array
    standard_error: jax.Array


def hessian_product(loss: Loss, params: Any) -> Callable[[Any], Any]:
    """v ↦ ∇²f(x) v, forward over reverse."""
    gradient = jax.grad(loss)
    return lambda v: jax.jvp(gradient, (params,), (v,))[1]


def leading_eigenvalues(
    loss: Loss, params: Any, key: jax.Array, count: int = 5, products: int = 40
) -> jax.Array:
    """The largest eigenvalues of ∇²f(x), the largest first, by Lanczos.

    Args:
        loss: f.
        params: x.
        key: the key of the vector that Lanczos starts from.
        count: the number of eigenvalues.
        products: the number of products of the Hessian with a vector, large enough for
            the eigenvalues to converge.
    """
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    product = hessian_product(lambda x: loss(unravel(x)), flat)
    start = jax.random.normal(key, flat.shape, flat.dtype)
    lanczos = eig.eigh_partial(decomp.tridiag_sym(min(products, flat.size)))
    values, _ = lanczos(product, start)
    return values[::-1][:count]


def trace(loss: Loss, params: Any, key: jax.Array, draws: int = 50) -> Estimate:
    """tr ∇²f(x) by Hutchinson's vᵀ ∇²f(x) v, with random signs as entries of v."""
    estimate = stochtrace.estimator_monte_carlo_mean_and_sem(
        stochtrace.monte_carlo_trace(),
        sampler=stochtrace.sampler_signs(params, num=draws),
    )
    return Estimate(*estimate(hessian_product(loss, params), key))


def excess(
    value_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    batch: Any,
    key: jax.Array,
    sampler: lejax.Sampler,
    tau: Any,
) -> Estimate:
    """F_τ(x) - f(x) with `importance`, F^H_τ(x) - f(x) with a sampler of heat.

    Args:
        value_fn: `value_fn(params, batch)`, f on a batch.
        params: x.
        batch: the examples.
        key: the key of the draws.
        sampler: a sampler that estimates its objective.
        tau: τ, the variance of the smoothing.
    """
    (smoothed, info), _ = lejax.value_and_grad(value_fn, sampler, tau)(
        params, key, batch
    )
    return Estimate(smoothed - value_fn(params, batch), info.standard_error)


def sam_sharpness(loss: Loss, params: Any, rho: float = 0.05) -> jax.Array:
    """max f(x + e) - f(x) over |e| ≤ ρ, by SAM's one step e = ρ ∇f/|∇f|."""
    value, grads = jax.value_and_grad(loss)(params)
    norm = optax.tree.norm(grads)
    # At a stationary point the step is 0.
    scale = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1), 0)
    return loss(optax.tree.add_scale(params, scale, grads)) - value


def under_noise(
    function: Callable[[Any], jax.Array],
    params: Any,
    key: jax.Array,
    sigma: Any,
    draws: int = 20,
) -> jax.Array:
    """The mean of a function at x + σε, ε ~ N(0, I) in all parameters."""

    def noisy(key: jax.Array) -> jax.Array:
        noise = optax.tree.random_like(key, params, jax.random.normal)
        return function(optax.tree.add_scale(params, sigma, noise))

    return jax.lax.map(noisy, jax.random.split(key, draws)).mean()
