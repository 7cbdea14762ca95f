"""The optax transformation that both regularisations share, and its state."""

from __future__ import annotations

import dataclasses
import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from lejax._info import Info, is_known, make_info
from lejax._internal.checks import (
    dtype_of,
    float_leaves,
    given,
    loss_function,
    shown,
    typed_key,
    warn_of_rounding,
)
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
from lejax._tracing.compiled import run_compiled
from lejax._tracing.loss import Loss, OutsideLoss
from lejax._transforms.place_in_chain import check_place


class SmoothingState(NamedTuple):
    """The state of `local_entropy` and `heat`.

    Attributes:
        step: the number of updates so far.
        key: the key that the factory was given; every update folds `step` into it, so
            that a restored state continues bit for bit. For formats without typed keys,
            such as `flax.serialization`, save `jax.random.key_data(state.key)`, and
            restore the key by `jax.random.wrap_key_data`.
        sampler: the state of the sampler.
        info: the info of the last update; NaN before the first.

    Examples:
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
    beta: ScalarOrSchedule,
    mask: Mask,
    has_aux: bool | PyTree,
    displacement: bool,
    *,
    keep_gradient: bool = False,
    shrink: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The transformation that `local_entropy`, `heat` and `entropy_sgd` share."""
    first = first_tau(tau, sampler)
    check_smoothing(sampler, first, beta)
    if not displacement:
        sampler.warn(first)
    typed_key(key)
    if shrink and not sampler.traits.tells_noise:
        raise ValueError(
            "shrink=True needs a sampler that estimates its noise, got "
            f"{sampler.name}; leave it out, or take importance, pathwise or "
            "score_function."
        )

    rules, numbers = rules_of(tau, beta)
    settings = Smoothing(sampler, rules, displacement, keep_gradient, shrink)
    return of_selected(settings, smoothing_step, numbers, key, mask, has_aux, first)


def rules_of(*values: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The rules and the numbers among `values`, with None in the gaps of each."""
    ruled = [callable(v) or isinstance(v, ShareController) for v in values]
    pairs = list(zip(ruled, values, strict=True))
    return (
        tuple(value if is_rule else None for is_rule, value in pairs),
        tuple(None if is_rule else value for is_rule, value in pairs),
    )


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """The settings of an update, without the numbers that may change at run time.

    Attributes:
        sampler: the sampler.
        rules: of τ and β: a schedule or, for τ, a controller; None for numbers.
        displacement: whether the output is βτ times the gradient.
        keep_gradient: whether the info holds the gradient.
        shrink: whether the gradient is multiplied by the share that is signal.
    """

    sampler: Sampler
    rules: tuple[Any, ...]
    displacement: bool = False
    keep_gradient: bool = False
    shrink: bool = False

    def first_state(
        self, key: jax.Array, params: PyTree, aux: PyTree
    ) -> SmoothingState:
        """The state before the first update."""
        info = make_info(compute_dtype(params), 0)._replace(aux=aux)
        if self.keep_gradient:
            info = info._replace(gradient=optax.tree.zeros_like(params))
        state = self.sampler.init(params)
        return SmoothingState(jnp.zeros((), jnp.int32), key, state, info)


def smoothing_step(
    settings: Smoothing,
    loss: Loss | OutsideLoss,
    params: PyTree,
    state: SmoothingState,
    tau: Scalar | None,
    beta: Scalar | None,
) -> tuple[PyTree, SmoothingState]:
    """The output and the next state; τ or β is None if a rule gives it."""
    sampler: Sampler = settings.sampler
    of_tau, of_beta = settings.rules
    if isinstance(of_tau, ShareController):
        tau = current_tau(of_tau, state.step, state.info, sampler)
    elif of_tau is not None:
        tau = of_tau(state.step)
    if of_beta is not None:
        beta = of_beta(state.step)
    grads, inside, info, _ = estimate_gradient(
        sampler,
        jax.random.fold_in(state.key, state.step),
        state.sampler,
        params,
        loss,
        tau,
        beta,
        displacement=settings.displacement,
    )
    if settings.keep_gradient:
        scale = 1 / (info.beta_used * info.tau_used) if settings.displacement else 1
        info = info._replace(gradient=scaled(grads, scale))
    if settings.shrink:
        share = jnp.where(is_known(info.signal), info.signal, 1)
        grads = scaled(grads, share.clip(0, 1))
    if isinstance(of_tau, ShareController):
        grads = restrained(of_tau, grads, state.step, info, sampler)
    return grads, SmoothingState(next_step(state), state.key, inside, info)


def next_step(state: Any) -> jax.Array:
    """The number of updates after this one."""
    return jnp.asarray(optax.safe_increment(state.step))


def of_selected(
    settings: Any,
    step: Callable[..., tuple[PyTree, Any]],
    numbers: tuple[Any, ...],
    key: jax.Array,
    mask: Mask,
    has_aux: bool | PyTree,
    tau: Any,
) -> optax.GradientTransformationExtraArgs:
    """A transformation of the leaves of a mask, by a loss of them, from τ on.

    `step(settings, loss, selected, state, *numbers)` returns the output in their place,
    and the next state.
    """
    sampler = settings.sampler
    like = has_aux if not isinstance(has_aux, bool) else None

    def init(params: PyTree) -> Any:
        selected, _ = _select(mask, params)
        warn_of_rounding(selected, tau)
        aux = jax.tree.map(
            lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)), like
        )
        # A state may be donated: no two of its leaves, and no key or parameter of the
        # caller's, are the same array.
        return jax.tree.map(jnp.copy, settings.first_state(key, selected, aux))

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
        if updates is not None:
            # With a mask, the other leaves keep them.
            lost = restore(updates, jax.tree.map(lambda _: None, params))
            _check_made(lost)
        told = check_place(replaces_all=mask is None)
        if updates is not None and mask is None and not told:
            _warn_of_discarded(updates)
        with_aux = has_aux is True or like is not None
        loss = _of_selected(value_fn, lambda part: restore(part, params), with_aux)
        found, new_state = run_compiled(
            step,
            settings,
            sampler.loss(loss, selected, batch, has_aux=with_aux),
            *(selected, state, *numbers),
            differentiated=sampler.traits.needs_gradient,
            inline=any(sampler.axes),
        )
        _MADE.update((id(leaf), leaf) for leaf in jax.tree.leaves(found))
        _warn_of_nothing(new_state.info, sampler)
        if updates is None:
            # Leaves that are no arrays, which a mask excludes, have no update.
            updates = jax.tree.map(
                lambda leaf: None if dtype_of(leaf) is None else jnp.zeros_like(leaf),
                params,
            )
        return restore(found, updates), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _warn_of_nothing(info: Info, sampler: Sampler) -> None:
    """Warn if no sample was effective, outside of `jax.jit`."""
    size = info.effective_sample_size
    if isinstance(size, Tracer) or size.ndim or float(size) != 0:
        return
    warnings.warn(
        f"no sample of {sampler.name} was effective, so the update is zero: value_fn "
        f"was not finite in {float(info.nonfinite_fraction):.0%} of the samples; start "
        "where it is finite, or lower tau, or scale the parameters to be of size 1.",
        stacklevel=3,
    )


# The outputs of transformations of this kind, while they are alive.
_MADE: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def _check_made(updates: PyTree) -> None:
    """Refuse incoming updates that a transformation of this kind has made."""
    leaves = jax.tree.leaves(updates)
    if any(_MADE.get(id(leaf)) is leaf for leaf in leaves):
        raise ValueError(
            "two transformations of a smoothed loss follow each other, and the second "
            "replaces what the first has made; keep one, or give them masks that have "
            "no leaf in common."
        )


def _warn_of_discarded(updates: PyTree) -> None:
    """Warn of updates, as gradients, that are not zero, if they are concrete."""
    leaves = jax.tree.leaves(updates)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return
    with jax.ensure_compile_time_eval():
        lost = any(bool(jnp.any(leaf != 0)) for leaf in leaves)
    if lost:
        warnings.warn(
            "local_entropy, heat or gaussian replaces the updates that are passed, and "
            "these are not zero; pass None, as gradients are not needed.",
            stacklevel=3,
        )


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
    # A tree of booleans may be callable itself, as modules are.
    leaves = jax.tree.leaves(mask)
    tree = mask(params) if leaves and all(map(callable, leaves)) else mask
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if dtype_of(leaf) != jnp.dtype(bool):
            raise ValueError(
                f"mask{jax.tree_util.keystr(path)} must be True or False, got "
                f"{shown(leaf)}; pass True for what is to be perturbed."
            )
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
