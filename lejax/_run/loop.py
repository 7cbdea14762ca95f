"""The compiled loop of `minimize`: estimates, and the updates made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lejax._info import Info, is_known, unknown
from lejax._internal.trees import compute_dtype, inner, scaled
from lejax._internal.types import LossFn, PyTree
from lejax._run.history import History, record
from lejax._run.stopping import Rules, Watch, look, start_watch
from lejax._tracing.compiled import Same, compiled
from lejax._tracing.loss import Loss
from lejax._transforms.certificate import certificate
from lejax._transforms.smoothing import Smoothing, smoothing_step


class Run(NamedTuple):
    """What goes on from update to update."""

    params: PyTree
    smoothing: PyTree
    optimizer: PyTree
    watch: Watch


@dataclasses.dataclass(frozen=True)
class Loop:
    """What every update of a run is made by, but for its numbers.

    Attributes:
        smoothing: makes a gradient, or a displacement.
        optimizer: makes updates of it.
        patience: of the rules.
        has_target: whether there is a target value.
        size: how many updates there are in a block at most.
        donate: whether the run that goes into a block is used up: its memory is then
            that of the new one.
    """

    smoothing: Smoothing
    optimizer: Same
    patience: int | None
    has_target: bool
    size: int
    donate: bool


def start(loop: Loop, key: jax.Array, params: PyTree) -> Run:
    """The run before its first update, of arrays that nobody else holds."""
    dtype = compute_dtype(params)
    run = Run(
        params,
        loop.smoothing.first_state(key, params, None),
        loop.optimizer.value.init(params),
        start_watch(loop.patience, dtype),
    )
    # Copies: the caller keeps the parameters, and a chain's start is they.
    return jax.tree.map(
        lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype, copy=True), run
    )


def make_program(
    loop: Loop, value_fn: LossFn, params: PyTree, batch: PyTree, *, any_batch: bool
) -> Callable[..., tuple[Run, History]]:
    """A compiled block of updates, on this batch or, with `any_batch`, on others.

    `program(run, batches, first, last, moving, numbers)` makes an estimate for each of
    the batches from `first` to before `last`, until a rule says stop; each is followed
    by an update unless one does, if `moving`. `batches` is None where there is but one.
    The history, of NumPy arrays, is that of the estimates made.
    """
    sampler = loop.smoothing.sampler
    loss: Any = sampler.loss(value_fn, params, batch, any_batch=any_batch)
    block = compiled(
        _block,
        loop,
        loss,
        params,
        differentiated=sampler.traits.needs_gradient,
        comparable=not any(sampler.axes),
        donate=loop.donate,
    )

    def program(
        run: Run, batches: PyTree, first: int, last: int, moving: bool, numbers: Any
    ) -> tuple[Run, History]:
        where = np.int32(first), np.int32(last), np.bool_(moving)
        run, history, end = block(run, batches, *where, numbers)
        history, end = jax.device_get((history, end))
        return run, jax.tree.map(lambda column: column[first:end], history)

    return program


def _block(
    loop: Loop,
    loss: Loss,
    run: Run,
    batches: PyTree,
    first: jax.Array,
    last: jax.Array,
    moving: jax.Array,
    numbers: tuple[Any, ...],
) -> tuple[Run, History, jax.Array]:
    tau, beta, target = numbers
    rules = Rules(target if loop.has_target else None, loop.patience)

    def unfinished(carry: tuple[Run, History, jax.Array]) -> jax.Array:
        run, _, i = carry
        return (i < last) & (run.watch.reason == 0)

    def advance(
        carry: tuple[Run, History, jax.Array],
    ) -> tuple[Run, History, jax.Array]:
        run, history, i = carry
        own = loss
        if batches is not None:
            own = loss.on(jax.tree.map(lambda leaf: leaf[i], batches))
        grads, smoothing = smoothing_step(
            loop.smoothing, own, run.params, run.smoothing, tau, beta
        )
        info = smoothing.info
        watch = look(run.watch, info, rules)
        updates, state = loop.optimizer.value.update(grads, run.optimizer, run.params)
        moved = optax.apply_updates(run.params, updates)
        # Where a rule stops the run, it returns the parameters that it judged.
        moves = moving & (watch.reason == 0)
        params = optax.tree.where(moves, moved, run.params)
        history = jax.tree.map(
            lambda past, new: past.at[i].set(new),
            history,
            _kept(loop.smoothing, info, grads, updates),
        )
        return Run(params, smoothing, state, watch), history, i + 1

    info = run.smoothing.info
    history = jax.tree.map(
        lambda leaf: jnp.zeros((loop.size, *leaf.shape), leaf.dtype),
        record(info, info.signal, info.signal),
    )
    return jax.lax.while_loop(unfinished, advance, (run, history, first))


def _kept(smoothing: Smoothing, info: Info, grads: PyTree, updates: PyTree) -> History:
    """What the history keeps: also which updates were certain to lower F."""
    nothing = unknown(info.signal.dtype)
    scale = info.beta_used * info.tau_used
    gradient = scaled(grads, 1 / scale) if smoothing.displacement else grads
    square = inner(gradient, gradient, nothing.dtype) * scale**2
    if smoothing.sampler.regularization == "heat":
        return record(info, square, nothing)
    found = certificate(info._replace(gradient=gradient), updates)
    certain = (found.decrease > 0).astype(nothing.dtype)
    certain = jnp.where(is_known(info.signal_standard_error), certain, nothing)
    return record(info, square, certain)
