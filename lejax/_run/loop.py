"""The compiled loop of `minimize`: estimates, and updates from them."""

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
from lejax._run.stopping import REASONS, Rules, Watch, look, start_watch
from lejax._tracing.comparison import Same
from lejax._tracing.compiled import compiled
from lejax._tracing.loss import Loss
from lejax._transforms.certificate import certificate
from lejax._transforms.smoothing import Smoothing, SmoothingState, smoothing_step


class MinimizeState(NamedTuple):
    """The state of a run of `minimize`, besides its parameters.

    It is a tree of arrays, and `result.state` of every run. Save it with the parameters
    to continue later. Restore it into the state of a run with the same settings, for
    example a run of one update.

    Attributes:
        smoothing: a `SmoothingState`: the number of updates, the key, the state of the
            sampler, the last `Info`.
        optimizer: the state of the optimizer.
        watch: the state of the stopping rules.

    Examples:
        Two runs of ten updates are one run of twenty:

        >>> import jax, jax.numpy as jnp, lejax
        >>> def run(x, num_updates, state=None):
        ...     return lejax.minimize(
        ...         lambda x: x**2, x, tau=0.1, key=jax.random.key(0), state=state,
        ...         num_updates=num_updates,
        ...     )
        >>> half = run(jnp.array(3.0), 10)
        >>> print(half.state.smoothing.step)
        10
        >>> print(run(half.x, 10, half.state).x == run(jnp.array(3.0), 20).x)
        True
    """

    smoothing: SmoothingState
    optimizer: PyTree
    watch: Watch


class Run(NamedTuple):
    """The parameters and the state of a run."""

    params: PyTree
    state: MinimizeState


@dataclasses.dataclass(frozen=True)
class Loop:
    """The settings of a run that are fixed at compile time.

    Attributes:
        smoothing: estimates a gradient, or a displacement.
        optimizer: computes updates from it.
        patience: of the stopping rules.
        has_target: whether there is a target value.
        size: the most updates in a block.
        donate: whether a block reuses the memory of the run that it is given.
    """

    smoothing: Smoothing
    optimizer: Same
    patience: int | None
    has_target: bool
    size: int
    donate: bool


def start(
    loop: Loop, key: jax.Array, params: PyTree, state: MinimizeState | None = None
) -> Run:
    """The run before its first update, in arrays of its own.

    With a `state`, the run continues from there; its stopping rules start again if
    `patience` is another one.
    """
    dtype = compute_dtype(params)
    watch = start_watch(loop.patience, dtype)
    new = MinimizeState(
        loop.smoothing.first_state(key, params, None),
        loop.optimizer.value.init(params),
        watch,
    )
    if state is not None:
        state = _checked(state, new)
        if state.watch.window.shape != watch.window.shape:
            state = state._replace(watch=watch)
        new = state._replace(watch=state.watch._replace(reason=watch.reason))
    # Copies: the caller keeps the parameters, and a chain starts at them.
    return jax.tree.map(
        lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype, copy=True),
        Run(params, new),
    )


def finished(state: MinimizeState) -> MinimizeState:
    """The state to continue from; after a stop by patience, its count starts again."""
    watch = state.watch
    ended_by_patience = int(watch.reason) == REASONS.index("patience") + 1
    if ended_by_patience:
        watch = start_watch(watch.window.size, watch.window.dtype)
    return state._replace(watch=watch)


def _checked(state: Any, like: MinimizeState) -> MinimizeState:
    """`state`, if it can be the state of this run."""

    def kinds(state: MinimizeState) -> Any:
        leaves, structure = jax.tree.flatten(state._replace(watch=None))
        return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]

    if not isinstance(state, MinimizeState) or kinds(state) != kinds(like):
        raise ValueError(
            "state must come from a run with the same params, sampler and optimizer, "
            f"got a {type(state).__name__} that does not fit; pass state=result.state, "
            "or a checkpoint that was restored into such a state."
        )
    return state


def make_program(
    loop: Loop, value_fn: LossFn, params: PyTree, batch: PyTree, *, any_batch: bool
) -> Callable[..., tuple[Run, History]]:
    """A compiled block of updates, on this batch or, with `any_batch`, on others.

    `program(run, batches, first, last, moving, numbers)` makes an estimate on each of
    `batches[first:last]`, and an update from it if `moving`, until a stopping rule
    applies. `batches` is None if there is one batch for all. An estimate without an
    update leaves the run as it was. The history has a NumPy entry for each estimate.
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
        return (i < last) & (run.state.watch.reason == 0)

    def advance(
        carry: tuple[Run, History, jax.Array],
    ) -> tuple[Run, History, jax.Array]:
        run, history, i = carry
        own = loss
        if batches is not None:
            own = loss.on(jax.tree.map(lambda leaf: leaf[i], batches))
        before = run.state
        grads, smoothing = smoothing_step(
            loop.smoothing, own, run.params, before.smoothing, tau, beta
        )
        info = smoothing.info
        watch = look(before.watch, info, rules)
        updates, optimizer = loop.optimizer.value.update(
            grads, before.optimizer, run.params
        )
        moved = Run(
            optax.apply_updates(run.params, updates),
            MinimizeState(smoothing, optimizer, watch),
        )
        # A run that stops returns the parameters that the rule judged, and their state:
        # it can then continue as if it had not stopped.
        moves = moving & (watch.reason == 0)
        run = jax.lax.cond(moves, lambda: moved, lambda: run)
        run = run._replace(
            state=run.state._replace(
                watch=run.state.watch._replace(reason=watch.reason)
            )
        )
        history = jax.tree.map(
            lambda past, new: past.at[i].set(new),
            history,
            _kept(loop.smoothing, info, grads, updates),
        )
        return run, history, i + 1

    info = run.state.smoothing.info
    like = info.signal
    history = jax.tree.map(
        lambda leaf: jnp.zeros((loop.size, *leaf.shape), leaf.dtype),
        record(info, squared_norm=like, slope=like, certified=like),
    )
    return jax.lax.while_loop(unfinished, advance, (run, history, first))


def _kept(smoothing: Smoothing, info: Info, grads: PyTree, updates: PyTree) -> History:
    """The entries of one update, and whether it was certain to lower F."""
    nothing = unknown(info.signal.dtype)
    scale = info.beta_used * info.tau_used
    gradient = scaled(grads, 1 / scale) if smoothing.displacement else grads
    square = inner(gradient, gradient, nothing.dtype) * scale**2
    slope = inner(gradient, updates, nothing.dtype)
    certified = nothing
    if smoothing.sampler.regularization != "heat":
        found = certificate(info._replace(gradient=gradient), updates)
        certified = (found.decrease > 0).astype(nothing.dtype)
        certified = jnp.where(is_known(info.signal_standard_error), certified, nothing)
    return record(info, squared_norm=square, slope=slope, certified=certified)
