"""Smoothed gradients as optax transformations, for the head of a chain."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._control import current_tau, first_tau, restrained
from lejax._estimate import check_sampler, estimate_gradient
from lejax._info import Info, make_info
from lejax._sampler import Sampler, check_smoothing
from lejax._trees import PyTree, compute_dtype
from lejax._validate import (
    float_leaves,
    given,
    loss_function,
    typed_key,
)


class SmoothingState(NamedTuple):
    """The state of `local_entropy` and `heat`.

    Attributes:
        step: the number of updates so far.
        key: the key that the factory was given; every update folds `step` into it, so
            that a restored state goes on bit for bit.
        sampler: the state of the sampler.
        info: the info of the last update; NaN before the first.

    Example:
        It is the first part of the state of a chain that begins with either:

        >>> import jax, jax.numpy as jnp, lejax, optax
        >>> smooth = lejax.heat(lejax.pathwise(2), tau=0.1, key=jax.random.key(0))
        >>> tx = optax.chain(smooth, optax.sgd(0.5))
        >>> x = jnp.ones(3)
        >>> given = dict(value_fn=lambda x: jnp.sum(x**2))
        >>> _, state = tx.update(None, tx.init(x), x, **given)
        >>> print(state[0].step, optax.tree.get(state, "info").num_evaluations)
        1 2
    """

    step: jax.Array
    key: jax.Array
    sampler: PyTree
    info: Info


def local_entropy(
    sampler: Sampler,
    tau: Any,
    *,
    key: jax.Array,
    beta: Any = 1.0,
    mask: Any = None,
    has_aux: Any = False,
    displacement: bool = False,
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
    `MultiSteps` evaluates k times and keeps the last estimate alone.

    Args:
        sampler: `importance` or `sgld`.
        tau: τ, the variance of the smoothing, in squared units of the parameters: a
            positive number, a schedule of the number of updates so far, or a controller
            made by `target_share`.
        key: a typed key, `jax.random.key(seed)`.
        beta: β > 0, the inverse temperature. With f the mean over a batch, β = 1 leaves
            the weights almost uniform. `importance` with a `target_share` finds its own
            from the second update on.
        mask: which leaves to perturb: a tree of booleans like params, or a prefix of
            it, or a function of params that returns one. The others keep their incoming
            updates (zeros where `updates` is None). Default: all.
        has_aux: whether `value_fn` returns a pair (f, aux). The aux at params itself is
            kept in `state.info.aux`, at the price of one more evaluation. True leaves
            it None before the first update; an example of aux (arrays, or
            `jax.ShapeDtypeStruct`s) instead of True keeps the structure of the state
            the same from the start, as `jax.lax.scan` needs it. f(x) itself is had by
            `value_fn` returning (f, (f, ...)).
        displacement: let x - E_q[X] = βτ ∇F come out instead of ∇F: `optax.sgd(1.0)`
            behind it is Algorithm 1 whatever becomes of τ and β.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `SmoothingState`, whose `info`
        tells about the last update. Nothing that is not finite leaves it.

    Raises:
        ValueError: `tau` or `beta` is not positive, the sampler is one of heat
            regularisation or cannot work at `tau`, a perturbed leaf is not floating,
            params is None or has a `MaskedNode`, `value_fn` is missing; or as
            `target_share` says.
        TypeError: `key` is not a typed key, or `value_fn` does not return a scalar.

    Example:
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
        Garcia Trillos, Kaplan, Sanz-Alonso, section 3; Chaudhari et al., *Entropy-SGD*.
    """
    check_sampler(sampler, "local entropy")
    return smoothed(sampler, tau, key, beta, mask, has_aux, displacement)


def heat(
    sampler: Sampler,
    tau: Any,
    *,
    key: jax.Array,
    mask: Any = None,
    has_aux: Any = False,
    displacement: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The gradient of the heat-regularised loss, as an optax transformation.

        F^H_τ(x) = E_φ f(X),   φ = N(x, τI),
        ∇F^H_τ(x) = E_φ ∇f(X) = E_φ[(f(X) - b)(X - x)] / τ.

    By `pathwise` or `score_function` it is that gradient at x. By `robbins_monro` it is
    (x_k - x_{k+1})/τ = ∇F^H_τ(x_{k+1}), so that
    `optax.chain(lejax.heat(...), optax.sgd(tau))` is Algorithm 2 of the paper.

    Args:
        sampler: `robbins_monro`, `pathwise` or `score_function`.
        tau: τ, the variance of the smoothing, in squared units of the parameters: a
            positive number, or a schedule of the number of updates so far.
        key: a typed key, `jax.random.key(seed)`.
        mask: which leaves to perturb, as in `local_entropy`.
        has_aux: whether `value_fn` returns a pair, as in `local_entropy`.
        displacement: let τ times the gradient come out: `optax.sgd(1.0)` behind it is
            Algorithm 2 whatever the schedule of τ.

    Returns:
        An `optax.GradientTransformationExtraArgs` with a `SmoothingState`, to be called
        and read like that of `local_entropy`.

    Raises:
        ValueError, TypeError: as `local_entropy`.

    Example:
        >>> import jax, jax.numpy as jnp, lejax, optax
        >>> def loss(x):
        ...     return jnp.sum(x**2) / 2
        >>> tx = optax.chain(
        ...     lejax.heat(lejax.pathwise(2), tau=0.1, key=jax.random.key(0)),
        ...     optax.sgd(0.5),
        ... )
        >>> x = jnp.ones(3)
        >>> updates, state = tx.update(None, tx.init(x), x, value_fn=loss)
        >>> print(optax.apply_updates(x, updates))
        [0.5 0.5 0.5]

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, section 4.
    """
    check_sampler(sampler, "heat")
    return smoothed(sampler, tau, key, 1.0, mask, has_aux, displacement)


def smoothed(
    sampler: Sampler,
    tau: Any,
    key: jax.Array,
    beta: Any,
    mask: Any,
    has_aux: Any,
    displacement: bool,
) -> optax.GradientTransformationExtraArgs:
    """What the transformations share."""
    check_smoothing(sampler, first_tau(tau, sampler), beta)
    typed_key(key)
    like = has_aux if not isinstance(has_aux, bool) else None

    def init(params: PyTree) -> SmoothingState:
        selected, _ = _select(mask, params)
        dtype = compute_dtype(selected)
        aux = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        info = make_info(dtype, 0)._replace(aux=aux)
        return SmoothingState(
            jnp.zeros((), jnp.int32), key, sampler.init(selected), info
        )

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        batch: PyTree = None,
        **ignored: Any,
    ) -> tuple[PyTree, SmoothingState]:
        del ignored
        value_fn = loss_function(value_fn)
        selected, restore = _select(mask, params)

        @functools.wraps(value_fn)
        def loss(selected: PyTree, *batch: PyTree) -> Any:
            return value_fn(restore(selected, params), *batch)

        grads, sampler_state, info = estimate_gradient(
            sampler,
            jax.random.fold_in(state.key, state.step),
            state.sampler,
            selected,
            value_fn=loss,
            batch=batch,
            tau=current_tau(tau, state.step, state.info, sampler),
            beta=beta,
            has_aux=has_aux is True or like is not None,
            displacement=displacement,
        )
        grads = restrained(tau, grads, state.step, info, sampler)
        if updates is None:
            updates = jax.tree.map(jnp.zeros_like, params)
        step = jnp.asarray(optax.safe_increment(state.step))
        new_state = SmoothingState(step, state.key, sampler_state, info)
        return restore(grads, updates), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _select(mask: Any, params: PyTree) -> tuple[PyTree, Callable[..., PyTree]]:
    """The leaves to perturb, and how to put such leaves back among the others.

    Unselected leaves are None, so the selected ones keep their place in the tree.
    """
    given(params)
    if mask is None:
        return float_leaves(params), lambda selected, others: selected
    tree = mask(params) if callable(mask) else mask
    try:
        chosen = jax.tree.broadcast(tree, params)
    except ValueError as error:
        raise ValueError(
            f"mask must be a tree of booleans like params or a prefix of it, got {tree}"
            f" for params of structure {jax.tree.structure(params)}; match them."
        ) from error
    selected = jax.tree.map(lambda m, p: p if m else None, chosen, params)
    # None is what is left of a lone leaf that was not chosen.
    selected = float_leaves({} if selected is None else selected)

    def restore(selected: PyTree, others: PyTree) -> PyTree:
        return jax.tree.map(lambda m, s, o: s if m else o, chosen, selected, others)

    return selected, restore
