"""How much an update is sure to lower the local entropy of its batch."""

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
    """What `certificate` says of one update u; scalars.

    Attributes:
        decrease: the lower bound on F(x) - F(x + u), in the units of the loss; at most
            0 where no decrease is certain.
        estimate: the same without the margin for noise: the bound on average.
        inside: whether the guarantee holds. Outside are estimates whose noise is not
            known, those of shaped losses, which are none of ∇F, those of fewer than
            twenty effective samples, and updates that move leaves which the estimate
            left alone; `decrease` is then -inf.

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

    The Hessian of F = F_{τ,β} is at most I/(βτ), whatever the loss is. So for any u

        F(x) - F(x + u) ≥ -<∇F, u> - |u|²/(2βτ).

    Of ∇F an estimate ĝ = ∇F + e is known, of which u was made: with u = aĝ + r, r
    orthogonal to ĝ, and the squared error V of ĝ,

        -<∇F, u> = -a (|ĝ|² - <e, ĝ>) + <e, r>,   E<e, ĝ> = V,   |<e, r>| ≤ |e| |r|:

    the noise in the squared norm is taken off, and what u has beside ĝ (momentum, or
    Adam's scales, which may have seen the noise) is held to be of the worst direction.
    Margins are of first order in 1/J, as all errors of `Info` are. It holds for the F
    of this batch, with the loss as it was sampled, not for the loss itself.

    Args:
        info: of `local_entropy` with `keep_gradient=True` (`state.info`), or of
            `value_and_grad` with its gradient: `info._replace(gradient=grads)`.
        updates: u, like the parameters: what the whole chain made of the gradient, and
            `optax.apply_updates` adds.
        confidence: of what share of updates the bound holds, at least; between 0.5 and
            1.

    Returns:
        A `Certificate`.

    Raises:
        ValueError: `info` holds no gradient, as that of heat regularisation, whose
            Hessian has no bound; `updates` are not like it; `confidence` is not
            between 0.5 and 1.

    Examples:
        An error count has no gradient, and yet updates that are sure to help:

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
            "info holds no gradient; pass keep_gradient=True to lejax.local_entropy, "
            "or info._replace(gradient=grads) with those of lejax.value_and_grad. Heat "
            "regularisation has no certificate."
        )
    dtype = info.squared_error.dtype
    mine, others_move = _apart(info.gradient, updates)
    # Sums of half precision would lose what they are to tell.
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
    # The jackknife's variance is that of 2<e, ĝ>; <e, ĝ> - V has at most half of it.
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
    """The updates of the gradient's leaves, and whether those of any other move."""

    def missing(leaf: PyTree) -> bool:
        return leaf is None

    like = jax.tree.structure(gradient, is_leaf=missing)
    if like != jax.tree.structure(updates, is_leaf=missing):
        raise ValueError(
            f"updates must be like the gradient, of structure {like}, got "
            f"{jax.tree.structure(updates)}; pass what the whole chain returned."
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
    """The quantile of a standard normal."""
    return statistics.NormalDist().inv_cdf(probability)


def _student(probability: float, degrees: int) -> float:
    """That of Student's t (Abramowitz, Stegun, 26.7.5: to .01 from five degrees on)."""
    z = _normal(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees**k for k, term in enumerate(terms, 1))
