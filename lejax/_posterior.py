"""The loss of a Bayesian inverse problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jax.typing import ArrayLike

from lejax._internal.types import PyTree


def negative_log_posterior(
    forward: Callable[[PyTree], ArrayLike],
    log_prior: Callable[[PyTree], ArrayLike],
    observations: npt.ArrayLike,
    covariance: npt.ArrayLike,
) -> Callable[[PyTree], jax.Array]:
    """The negative logarithm of a posterior density, up to a constant.

    Use it for Bayesian inverse problems with Gaussian errors. Its minimiser is the
    maximum a posteriori estimate, and `gaussian` with `temperature=1.0` fits a mean and
    a covariance of exp(-f). For other likelihoods write f yourself; for exact samples
    of the posterior use MCMC. In NumPyro f is the `potential_fn`, and in BlackJAX -f is
    the `logdensity_fn`.

        f(u) = ½ |Γ^{-½}(y - G(u))|² - log p(u),   y = G(u) + η,   η ~ N(0, Γ).

    G may return NaN or infinity if it fails: such a sample counts as failed and has no
    weight. G may call code outside of JAX by `jax.pure_callback`, for samplers that
    take no gradient.

    Args:
        forward: G, the forward map: `forward(u)` is an array in the shape of y.
        log_prior: log p, up to a constant: `log_prior(u)` is a scalar, -inf if u is
            impossible.
        observations: y, an array of any shape.
        covariance: Γ, the covariance of the errors η, in squared units of y: a number,
            an array of variances in the shape of y, or a matrix (y.size, y.size).

    Returns:
        f, a function of u only, for `value_fn`.

    Raises:
        ValueError: observations or covariance are not finite; Γ is not positive
            definite, not symmetric, or of another shape; in the first call, G(u) has
            another shape than y.
        TypeError: in the first call, the prior is not a real scalar, or G(u) is
            complex.

    Examples:
        Ten observations of 2 with variance 1, and the prior N(0, 1): the mean is 20/11.

        >>> import jax, jax.numpy as jnp, lejax
        >>> f = lejax.negative_log_posterior(
        ...     lambda u: jnp.full(10, u), lambda u: -(u**2) / 2, jnp.full(10, 2.0), 1.0
        ... )
        >>> print(f"{jax.grad(f)(jnp.array(20 / 11)):.3f}")
        0.000

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 7; Stuart, *Inverse problems: a
        Bayesian perspective*.
    """
    y = _finite("observations", observations)
    gamma = _finite("covariance", covariance)
    whitened = _whitening(gamma, y)

    def value_fn(u: PyTree) -> jax.Array:
        predicted, prior = jnp.asarray(forward(u)), jnp.asarray(log_prior(u))
        if predicted.shape != y.shape:
            raise ValueError(
                f"forward returned an array of shape {predicted.shape} for observations"
                f" of shape {y.shape}; return one prediction for each observation."
            )
        if prior.shape != ():
            raise TypeError(
                f"log_prior must return a scalar, got shape {prior.shape}; sum the "
                "logarithms over all parameters."
            )
        for name, found in (("forward", predicted), ("log_prior", prior)):
            if jnp.issubdtype(found.dtype, jnp.complexfloating):
                raise TypeError(
                    f"{name} must return real numbers, got {found.dtype}; use the real "
                    "and imaginary parts as separate observations."
                )
        dtype = jax.dtypes.canonicalize_dtype(float)  # at least single precision
        residual = whitened(jnp.asarray(y, dtype) - predicted.astype(dtype))
        return jnp.sum(residual**2) / 2 - prior.astype(dtype)

    return value_fn


def _finite(name: str, value: Any) -> Any:
    """`value` as an array of finite real numbers.

    A NumPy array, so that its values are also known under `jax.jit`, unless traced.
    """
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))
    try:
        found = jnp.asarray(value) if traced else np.asarray(value)
        complex_ = jnp.issubdtype(found.dtype, jnp.complexfloating)
        if not complex_:
            found = found.astype(
                jax.dtypes.canonicalize_dtype(float) if traced else float
            )
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be an array of numbers, got {value!r:.60}; pass one array."
        ) from error
    if complex_:
        raise ValueError(
            f"{name} must be real, got {found.dtype}; pass the real and imaginary "
            "parts as separate numbers."
        )
    bad = 0 if traced else (~np.isfinite(found)).sum()
    if bad:
        raise ValueError(
            f"{name} has {bad} of {found.size} numbers that are not finite; leave out "
            "missing observations, in forward as well."
        )
    return found


def _whitening(gamma: Any, y: Any) -> Callable[[jax.Array], jax.Array]:
    """r -> Γ^{-½} r; positive definiteness is checked unless Γ is traced."""
    known = isinstance(gamma, np.ndarray)
    if gamma.shape in ((), y.shape):
        if known and gamma.min(initial=1) <= 0:
            raise ValueError(
                f"covariance must be positive, got a variance of {gamma.min()}; pass "
                "the squares of standard deviations."
            )
        # In double precision if it is known: a variance may be too small for single.
        deviations = np.sqrt(gamma) if known else jnp.sqrt(gamma)
        return lambda residual: residual / jnp.asarray(deviations, residual.dtype)
    if gamma.shape != (y.size, y.size):
        raise ValueError(
            f"covariance has shape {gamma.shape} for observations of shape {y.shape}; "
            f"pass a number, variances of shape {y.shape}, or a matrix of shape "
            f"{(y.size, y.size)}."
        )
    factor = _factor(gamma) if known else jnp.linalg.cholesky(gamma)
    return lambda residual: jax.scipy.linalg.solve_triangular(
        jnp.asarray(factor, residual.dtype), residual.ravel(), lower=True
    )


def _factor(matrix: np.ndarray) -> np.ndarray:
    """The Cholesky factor; refuse a matrix that has none."""
    if not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6 * np.abs(matrix).max()):
        raise ValueError(
            "covariance is not symmetric; pass its symmetric part "
            "(covariance + covariance.T) / 2 if you mean that."
        )
    # Of the correlations, so that the units of the observations do not matter.
    deviations = np.sqrt(np.diag(matrix).clip(np.finfo(np.float64).tiny))
    correlations = matrix / np.outer(deviations, deviations)
    least = np.linalg.eigvalsh(correlations)[0]
    if least <= len(matrix) * np.finfo(np.float64).eps:
        raise ValueError(
            f"covariance is not positive definite: the least eigenvalue of its "
            f"correlations is {least:.3g}; leave out observations that others "
            "determine, or add a variance to its diagonal."
        )
    return deviations[:, None] * np.linalg.cholesky(correlations)
