"""The optax transformation that both regularisations share, and its state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lejax._info import Info, is_known, make_info
from lejax._internal.checks import float_leaves, given, loss_function, typed_key
from lejax._internal.trees import compute_dtype, scaled
from lejax._internal.types import LossFn, Mask, PyTree, Scalar, ScalarOrSchedule
from lejax._samplers.gradient import estimate_gradient
from lejax._samplers.sampler import Sampler, check_smoothing
from lejax._schedules.target_share import (
    ShareController,
    current_tau,
    first_tau,
    restrained,
)
from lejax._tracing.loss import OutsideLoss


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


def smoothed(
    sampler: Sampler,
    tau: ScalarOrSchedule | ShareController,
    key: jax.Array,
    beta: Scalar,
    mask: Mask,
    has_aux: bool | PyTree,
    displacement: bool,
    *,
    keep_gradient: bool = False,
    shrink: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """What the transformations share."""
    check_smoothing(sampler, first_tau(tau, sampler), beta)
    typed_key(key)
    if shrink and not sampler.traits.tells_noise:
        raise ValueError(
            "shrink=True needs a sampler that estimates its noise, got "
            f"{sampler.name}; leave it out, or take importance, pathwise or "
            "score_function."
        )

    def begin(selected: PyTree, aux: PyTree) -> SmoothingState:
        info = make_info(compute_dtype(selected), 0)._replace(aux=aux)
        if keep_gradient:
            info = info._replace(gradient=optax.tree.zeros_like(selected))
        step = jnp.zeros((), jnp.int32)
        return SmoothingState(step, key, sampler.init(selected), info)

    def run(
        state: Any,
        selected: PyTree,
        loss: LossFn,
        batch: PyTree,
        with_aux: bool,
    ) -> tuple[PyTree, SmoothingState]:
        grads, sampler_state, info, _ = estimate_gradient(
            sampler,
            jax.random.fold_in(state.key, state.step),
            state.sampler,
            selected,
            sampler.loss(loss, selected, batch, has_aux=with_aux),
            current_tau(tau, state.step, state.info, sampler),
            beta,
            displacement=displacement,
        )
        if keep_gradient:
            factor = 1 / (info.beta_used * info.tau_used) if displacement else 1
            info = info._replace(gradient=scaled(grads, factor))
        if shrink:
            share = jnp.where(is_known(info.signal), info.signal, 1)
            grads = scaled(grads, share.clip(0, 1))
        grads = restrained(tau, grads, state.step, info, sampler)
        return grads, state._replace(sampler=sampler_state, info=info)

    return of_selected(begin, run, mask, has_aux)


def of_selected(
    begin: Callable[[PyTree, PyTree], Any],
    run: Callable[..., tuple[PyTree, Any]],
    mask: Mask,
    has_aux: bool | PyTree,
) -> optax.GradientTransformationExtraArgs:
    """A transformation of the leaves of a mask, by a loss of them.

    `begin(selected, aux)` is its first state, and `run(state, selected, loss, batch,
    with_aux)` what comes out in their place, and the next; its `step` is counted here.
    """
    like = has_aux if not isinstance(has_aux, bool) else None

    def init(params: PyTree) -> Any:
        selected, _ = _select(mask, params)
        aux = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return begin(selected, aux)

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        value_fn: LossFn | None = None,
        batch: PyTree = None,
        **ignored: Any,
    ) -> tuple[PyTree, Any]:
        del ignored
        selected, restore = _select(mask, params)
        with_aux = has_aux is True or like is not None
        loss = _of_selected(value_fn, lambda part: restore(part, params), with_aux)
        found, new_state = run(state, selected, loss, batch, with_aux)
        if updates is None:
            updates = jax.tree.map(jnp.zeros_like, params)
        step = jnp.asarray(optax.safe_increment(state.step))
        return restore(found, updates), new_state._replace(step=step)

    return optax.GradientTransformationExtraArgs(init, update)


def _of_selected(
    value_fn: Any, whole: Callable[[PyTree], PyTree], with_aux: bool
) -> LossFn | OutsideLoss:
    """The loss of the leaves to perturb."""
    if isinstance(value_fn, OutsideLoss):
        if with_aux:
            raise TypeError(
                "tx has has_aux, and losses that are told have no aux; leave it out."
            )
        return value_fn.after(whole)
    loss = loss_function(value_fn)
    return functools.wraps(loss)(lambda part, *batch: loss(whole(part), *batch))


def _select(mask: Mask, params: PyTree) -> tuple[PyTree, Callable[..., PyTree]]:
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
