"""The gradient of the local entropy, for the head of a chain."""

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

        F_{τ,β}(x) = -(1/β) log E_φ exp(-βf),   ∇F_{τ,β}(x) = (x - E_q[X]) / (βτ),

    with φ = N(x, τI) and q ∝ exp(-βf) φ. It replaces the incoming updates, so it comes
    first: `optax.chain(lejax.local_entropy(...), optax.sgd(beta * tau))` is Algorithm
    1 of the paper. Call `update(updates, state, params, value_fn=..., batch=...)`;
    `value_fn` is f: `value_fn(params, batch)`, or `value_fn(params)` without a batch.

    Parameters may be of half precision: estimates are summed in float32, and returned
    in the parameters' dtype. Where √τ is small against the spacing s of their numbers,
    x + √τ ε is rounded at random, to x + √τ ε on average: no bias, but noise that is
    about √(1 + 0.8 s/√τ) times that of float32.

    To accumulate over k batches, put the accumulation behind: the mean of k estimates
    is `optax.chain(lejax.local_entropy(...), multi)` with `multi =
    optax.MultiSteps(optax.sgd(...), k).gradient_transformation()`. Around it,
    `MultiSteps` evaluates k times and keeps the last estimate alone, and what its
    `gradient_transformation` makes hands no `value_fn` on from within another chain.

    Args:
        sampler: `importance` or `sgld`.
        tau: τ, the variance of the smoothing, in squared units of the parameters: a
            positive number, a schedule of the number of updates so far, or a controller
            made by `target_share`. A schedule is known by its identity: what was
            compiled with it is used again where the same object is passed.
        key: a typed key, `jax.random.key(seed)`.
        beta: β > 0, the inverse temperature, or a schedule of the number of updates so
            far. With f the mean over a batch, β = 1 leaves the weights almost uniform.
            `importance` with a `beta_share` finds its own from the second update on.
        mask: which leaves to perturb: a tree of booleans like params, or a prefix of
            it, or a function of params that returns one. The others keep their incoming
            updates (zeros where `updates` is None). Default: all.
        has_aux: whether `value_fn` returns a pair (f, aux). The aux at params itself is
            kept in `state.info.aux`, at the price of one more evaluation. True leaves
            it None before the first update; an example of aux (arrays, numbers, or
            `jax.ShapeDtypeStruct`s) instead of True keeps the structure of the state
            the same from the start, as `jax.lax.scan` and `nnx.Optimizer` need it.
            f(x) itself is had by `value_fn` returning (f, (f, ...)).
        keep_gradient: whether `state.info.gradient` holds the gradient, for
            `certificate`.
        shrink: multiply the gradient by the share of it that is signal, `info.signal`,
            between 0 and 1. A step ρδ̂ changes F by at most [ρ²(|δ|² + V) - 2ρ|δ|²]/2βτ
            on average, which is least at ρ = |δ|²/(|δ|² + V): the steps get shorter
            where they begin to be noise. What is behind must not undo it, as Adam does
            in the long run. Where the noise is not known, nothing is changed.
        displacement: let x - E_q[X] = βτ ∇F come out instead of ∇F: `optax.sgd(1.0)`
            behind it is Algorithm 1 whatever becomes of τ and β.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `SmoothingState`, whose `info`
        tells about the last update. Nothing that is not finite leaves it.

    Raises:
        ValueError: `tau` or `beta` is not positive, the sampler is one of heat
            regularisation or cannot work at `tau`, a perturbed leaf is not floating,
            params is None or has a `MaskedNode`, `value_fn` is missing, or `shrink`
            is asked of a sampler that never knows its noise; or as `target_share` says.
        TypeError: `key` is not a typed key, or `value_fn` does not return a scalar.

    Examples:
        An error count has no gradient; its local entropy has:

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
