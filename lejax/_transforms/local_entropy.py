"""The gradient of the local entropy, for the head of an optax chain."""

from __future__ import annotations

import jax
import optax

from lejax._internal.types import Mask, PyTree, ScalarOrSchedule
from lejax._samplers.gradient import check_sampler
from lejax._samplers.sampler import Sampler
from lejax._schedules.target_share import ShareController
from lejax._transforms.smoothing import smoothed


def local_entropy(
    sampler: Sampler,
    tau: ScalarOrSchedule | ShareController,
    *,
    key: jax.Array,
    beta: ScalarOrSchedule = 1.0,
    mask: Mask = None,
    has_aux: bool | PyTree = False,
    displacement: bool = False,
    keep_gradient: bool = False,
    shrink: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The gradient of the local entropy, as an optax transformation.

    Use it to train on a loss without a useful gradient (`importance`), or to prefer
    wide minima (`sgld`). If back-propagation works and seconds count, plain SGD or Adam
    is faster; to minimise the Gaussian average of the loss, use `heat`. `importance` is
    an evolution strategy with the weights exp(-βf). `optax.contrib.sam` also prefers
    flat minima, by the worst perturbation of one size in place of an average.

        F_{τ,β}(x) = -(1/β) log E_φ exp(-βf),   ∇F_{τ,β}(x) = (x - E_q[X]) / (βτ),

    with φ = N(x, τI) and q ∝ exp(-βf) φ. The gradient replaces the incoming updates, so
    this comes first in a chain, with a descent step behind it:
    `optax.chain(lejax.local_entropy(...), optax.sgd(beta * tau))` is Algorithm 1 of the
    paper. Call `update(updates, state, params, value_fn=..., batch=...)` with f as
    `value_fn`: `value_fn(params, batch)`, or `value_fn(params)` without a batch.

    Parameters may be in half precision. Estimates are summed in float32 and returned in
    the parameters' dtype. If √τ is small against the spacing s of the parameters'
    numbers, x + √τ ε is rounded at random: without bias, and with about
    √(1 + 0.8 s/√τ) times the noise of float32.

    To accumulate over k batches, put the accumulation behind: `optax.chain(
    lejax.local_entropy(...), multi)` with `multi =
    optax.MultiSteps(optax.sgd(...), k).gradient_transformation()` uses the mean of k
    estimates. `MultiSteps` around `local_entropy` pays for k estimates and keeps only
    the last; inside another chain it does not pass `value_fn` on.

    Args:
        sampler: `importance`, `importance_by_example` or `sgld`.
        tau: τ, the variance of the smoothing, in squared units of the parameters: a
            positive number, a schedule of the number of updates so far, or a controller
            made by `target_share`. Create a schedule once: a new one compiles again.
        key: a typed key, `jax.random.key(seed)`.
        beta: β > 0, the inverse temperature, or a schedule of the number of updates so
            far. If f is a mean over a batch, β = 1 leaves the weights almost uniform.
            `importance` with a `beta_share` uses it in the first update only.
        mask: the leaves to perturb: a tree of booleans like params, a prefix of it, or
            a function of params that returns one; by default all. Other leaves keep
            their incoming updates (zeros if `updates` is None).
        has_aux: whether `value_fn` returns a pair (f, aux). `state.info.aux` is the aux
            at params itself, for one more evaluation; return (f, (f, ...)) to get f(x).
            With True it is None before the first update. `jax.lax.scan` and
            `nnx.Optimizer` need a state of constant structure: pass an example of aux
            (arrays, numbers or `jax.ShapeDtypeStruct`s) in place of True.
        keep_gradient: whether `state.info.gradient` holds the gradient, for
            `certificate`.
        shrink: multiply the gradient by the share of it that is signal, `info.signal`,
            clipped to [0, 1]; unchanged if the noise is unknown. On average a step ρδ̂
            changes F by at most [ρ²(|δ|² + V) - 2ρ|δ|²]/2βτ, which is least at
            ρ = |δ|²/(|δ|² + V), so noisy steps become shorter. Avoid Adam behind it,
            which undoes this in the long run.
        displacement: return x - E_q[X] = βτ ∇F in place of ∇F. `optax.sgd(1.0)` behind
            it is Algorithm 1 even if τ and β change.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `SmoothingState`, whose `info`
        is the `Info` of the last update. The gradient is always finite.

    Raises:
        ValueError: `tau` or `beta` is not positive, the sampler is one for heat or
            cannot work at `tau`, a perturbed leaf is not floating, params is None or
            has a `MaskedNode`, `value_fn` is missing, its gradient is identically zero
            and the sampler is `sgld`, or `shrink` is set for a sampler that does not
            estimate its noise; and the errors of `target_share`.
        TypeError: `key` is not a typed key, or `value_fn` does not return a scalar.

    Examples:
        An error rate has no useful gradient; its local entropy has one:

        >>> import jax, jax.numpy as jnp, lejax, optax
        >>> inputs = jax.random.normal(jax.random.key(1), (200, 5))
        >>> labels = inputs @ jnp.arange(5.0) > 0
        >>> def error_rate(w):
        ...     return jnp.mean((inputs @ w > 0) != labels)
        >>> tx = optax.chain(
        ...     lejax.local_entropy(
        ...         lejax.importance(200), tau=0.1, beta=20.0, key=jax.random.key(0)
        ...     ),
        ...     optax.sgd(2.0),
        ... )
        >>> @jax.jit
        ... def update(w, state):
        ...     updates, state = tx.update(None, state, w, value_fn=error_rate)
        ...     return optax.apply_updates(w, updates), state
        >>> w = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0])
        >>> state = tx.init(w)
        >>> for _ in range(50):
        ...     w, state = update(w, state)
        >>> print(bool(error_rate(w) < 0.05))
        True

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 3; Chaudhari et al., *Entropy-SGD*;
        James, Stein, *Estimation with quadratic loss* (`shrink`).
    """
    check_sampler(sampler, "local entropy")
    return smoothed(
        sampler,
        tau,
        key,
        beta,
        mask,
        has_aux,
        displacement,
        keep_gradient=keep_gradient,
        shrink=shrink,
    )
