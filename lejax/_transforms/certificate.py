"""A lower bound on the decrease of the local entropy by an update."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lejax._estimators.plan import NUM_GROUPS
from lejax._info import TRUSTED_SAMPLE_SIZE, Info
from lejax._internal.checks import number
from lejax._internal.trees import inner
from lejax._internal.types import PyTree


class Certificate(NamedTuple):
    """The result of `certificate` for one update u.

    Use `decrease` to count or reject updates, and check `inside` first. Every field is
    a scalar.

    Attributes:
        decrease: the lower bound on F(x) - F(x + u), in the units of the loss. If it is
            0 or less, no decrease is certain. It is -inf if `inside` is False.
        estimate: the same without the margin for noise: the bound on average.
        inside: whether the guarantee holds. It is False if the noise of the estimate
            is unknown, if the losses were shaped (the estimate is then not ∇F), below
            twenty effective samples, and if the update moves leaves that a mask
            excluded.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> smoothed = lejax.value_and_grad(jnp.square, lejax.importance(1000), tau=0.1)
        >>> (_, info), grad = smoothed(jnp.array(3.0), jax.random.key(0))
        >>> info = info._replace(gradient=grad)
        >>> print(bool(lejax.certificate(info, -0.1 * grad).inside))
        True
    """

    decrease: jax.Array
    estimate: jax.Array
    inside: jax.Array


def certificate(
    info: Info, updates: PyTree, *, confidence: float = 0.95
) -> Certificate:
    """A lower bound on the decrease of the local entropy by an update.

    Use it with `importance`, to check that an update lowers F of this batch at a level
    of confidence, for any optimizer. It bounds neither the loss f itself nor the
    heat-regularised loss, and it is loose for updates that are far from parallel to the
    gradient, such as those of Adam. It is the descent lemma of smooth optimisation for
    a noisy gradient.

    The Hessian of F = F_{τ,β} is at most I/(βτ) for every loss. So for any u

        F(x) - F(x + u) ≥ -<∇F, u> - |u|²/(2βτ).

    The update u was made from an estimate ĝ = ∇F + e with squared error V. With
    u = aĝ + r, r orthogonal to ĝ,

        -<∇F, u> = -a (|ĝ|² - <e, ĝ>) + <e, r>,   E<e, ĝ> = V,   |<e, r>| ≤ |e| |r|.

    So the noise is subtracted from the squared norm, and the component r, from momentum
    or Adam's scales, is bounded by Cauchy-Schwarz, as it may depend on e. Margins are
    of first order in 1/J, as are all errors in `Info`.

    Args:
        info: the info of `local_entropy` with `keep_gradient=True`, in a chain
            `state[0].info`. From `value_and_grad` pass `info._replace(gradient=grads)`.
        updates: u, a tree like the parameters: the output of the whole chain, which
            `optax.apply_updates` adds.
        confidence: the probability that the bound holds, at least; between 0.5 and 1.

    Returns:
        A `Certificate`.

    Raises:
        ValueError: `info` holds no gradient, `updates` have another structure than the
            gradient, or `confidence` is not between 0.5 and 1. Heat regularisation has
            no certificate, as its Hessian has no such bound.

    Examples:
        The loss counts errors, and a decrease of its local entropy is certain:

        >>> import jax, jax.numpy as jnp, lejax, optax
        >>> inputs = jax.random.normal(jax.random.key(1), (200, 5))
        >>> labels = inputs @ jnp.arange(5.0) > 0
        >>> def error_rate(w):
        ...     return jnp.mean((inputs @ w > 0) != labels)
        >>> smooth = lejax.local_entropy(
        ...     lejax.importance(4000),
        ...     tau=0.1,
        ...     beta=20.0,
        ...     key=jax.random.key(0),
        ...     keep_gradient=True,
        ... )
        >>> tx = optax.chain(smooth, optax.sgd(1.0))
        >>> w = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0])
        >>> updates, state = tx.update(None, tx.init(w), w, value_fn=error_rate)
        >>> found = lejax.certificate(state[0].info, updates)
        >>> print(bool(found.decrease > 0), bool(found.estimate > found.decrease))
        True True

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, Theorem 3.2 (the decrease along the exact
        step); Székely, Bakirov, *Extremal probabilities for Gaussian quadratic forms*
        (|e| ≤ z √V with the probability of |N(0, 1)| ≤ z at least, whatever the
        directions of e).
    """
    if not 0.5 < number("confidence", confidence, traced=False) < 1:
        raise ValueError(
            f"confidence must be between 0.5 and 1, got {confidence!r}; "
            "pass for example confidence=0.95."
        )
    if info.gradient is None:
        raise ValueError(
            "info.gradient is None; pass keep_gradient=True to lejax.local_entropy, or "
            "info._replace(gradient=grads) with the gradient of lejax.value_and_grad. "
            "Heat regularisation has no certificate."
        )
    dtype = info.squared_error.dtype
    mine, others_move = _apart(info.gradient, updates)
    # Sums in half precision would be too coarse.
    gradient, mine = (
        jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
        for tree in (info.gradient, mine)
    )
    along = inner(gradient, mine, dtype)
    length = inner(mine, mine, dtype)
    square = inner(gradient, gradient, dtype)
    moved = square > 0
    a = jnp.where(moved, along / jnp.where(moved, square, 1), 0)
    beside = jnp.sqrt(jnp.maximum(length - a * along, 0))
    scale = info.beta_used * info.tau_used
    error = jnp.sqrt(info.squared_error) / scale
    estimate = -along * info.signal - length / (2 * scale)
    # The jackknife gives the variance of 2<e, ĝ>: at least twice that of <e, ĝ> - V.
    margin = jnp.abs(along) * info.signal_standard_error / math.sqrt(2)
    decrease = (
        estimate
        - _student(confidence, NUM_GROUPS - 1) * margin
        - _normal((1 + confidence) / 2) * error * beside
    )
    inside = (
        jnp.isfinite(decrease)
        & (info.effective_sample_size >= TRUSTED_SAMPLE_SIZE)
        & ~others_move
    )
    return Certificate(jnp.where(inside, decrease, -jnp.inf), estimate, inside)


def _apart(gradient: PyTree, updates: PyTree) -> tuple[PyTree, jax.Array]:
    """The updates of the leaves with a gradient, and whether any other leaf moves."""

    def missing(leaf: PyTree) -> bool:
        return leaf is None

    like = jax.tree.structure(gradient, is_leaf=missing)
    if like != jax.tree.structure(updates, is_leaf=missing):
        raise ValueError(
            f"updates must have the structure of the gradient, {like}, got "
            f"{jax.tree.structure(updates)}; pass the updates that the whole chain "
            "returned."
        )
    mine, others = (
        jax.tree.map(
            lambda g, u, keep=keep: u if (g is not None) == keep else None,
            gradient,
            updates,
            is_leaf=missing,
        )
        for keep in (True, False)
    )
    moves = [jnp.any(leaf != 0) for leaf in jax.tree.leaves(others)]
    return mine, jnp.stack([jnp.asarray(False), *moves]).any()


def _normal(probability: float) -> float:
    """A quantile of the standard normal distribution."""
    return statistics.NormalDist().inv_cdf(probability)


def _student(probability: float, degrees: int) -> float:
    """A quantile of Student's t (Abramowitz, Stegun, 26.7.5).

    Accurate to .01 from five degrees of freedom on.
    """
    z = _normal(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees**k for k, term in enumerate(terms, 1))
