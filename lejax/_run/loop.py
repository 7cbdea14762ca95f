"""The compiled loop of `minimize`: estimates, and the updates made of them."""

from __future__ import annotations

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
from lejax._transforms.certificate import certificate


class Run(NamedTuple):
    """What goes on from update to update."""

    params: PyTree
    smoothing: PyTree
    optimizer: PyTree
    watch: Watch


class Loop(NamedTuple):
    """Pure functions.

    Attributes:
        start: `start(params) -> run`, of arrays that nobody else holds.
        go_on: `go_on(run, batches, first, last, moving) -> (run, history)`: an estimate
            for each of the batches from `first` to before `last`, until a rule says
            stop; each is followed by an update unless one does, if `moving`. The
            history, of NumPy arrays, is that of the estimates made.
    """

    start: Callable[[PyTree], Run]
    go_on: Callable[..., tuple[Run, History]]


def make_loop(
    value_fn: LossFn,
    smooth: Any,  # `local_entropy` or `heat`; optax types no update from None
    optimizer: optax.GradientTransformation,
    rules: Rules,
    pick: Callable[[PyTree, jax.Array], PyTree],
    size: int,
    *,
    displacement: bool,
    certify: bool,
    donate: bool,
) -> Loop:
    """A loop over blocks of at most `size`; `pick(batches, i)` is the i-th batch.

    What `smooth` hands on is the gradient, or with `displacement` βτ times that; with
    `certify` it is told which updates were certain to lower the local entropy.
    With `donate` the run that goes in is used up: its memory is that of the new one.
    """

    def kept(info: Info, grads: PyTree, updates: PyTree) -> History:
        nothing = unknown(info.signal.dtype)
        scale = info.beta_used * info.tau_used
        gradient = scaled(grads, 1 / scale) if displacement else grads
        square = inner(gradient, gradient, nothing.dtype) * scale**2
        if not certify:
            return record(info, square, nothing)
        found = certificate(info._replace(gradient=gradient), updates)
        certain = (found.decrease > 0).astype(nothing.dtype)
        certain = jnp.where(is_known(info.signal_standard_error), certain, nothing)
        return record(info, square, certain)

    def start(params: PyTree) -> Run:
        run = Run(
            params,
            smooth.init(params),
            optimizer.init(params),
            start_watch(rules, compute_dtype(params)),
        )
        # Copies: the caller keeps the parameters, and a chain's start is they.
        return jax.tree.map(
            lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype, copy=True), run
        )

    def block(
        run: Run, batches: PyTree, first: jax.Array, last: jax.Array, moving: jax.Array
    ) -> tuple[Run, History, jax.Array]:
        def unfinished(carry: tuple[Run, History, jax.Array]) -> jax.Array:
            run, _, i = carry
            return (i < last) & (run.watch.reason == 0)

        def advance(
            carry: tuple[Run, History, jax.Array],
        ) -> tuple[Run, History, jax.Array]:
            run, history, i = carry
            grads, smoothing = smooth.update(
                None,
                run.smoothing,
                run.params,
                value_fn=value_fn,
                batch=pick(batches, i),
            )
            info = smoothing.info
            watch = look(run.watch, info, rules)
            updates, state = optimizer.update(grads, run.optimizer, run.params)
            moved = optax.apply_updates(run.params, updates)
            # Where a rule stops the run, it returns the parameters that it judged.
            moves = moving & (watch.reason == 0)
            params = optax.tree.where(moves, moved, run.params)
            history = jax.tree.map(
                lambda past, new: past.at[i].set(new),
                history,
                kept(info, grads, updates),
            )
            return Run(params, smoothing, state, watch), history, i + 1

        history = jax.tree.map(
            lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype),
            record(run.smoothing.info, *2 * (run.smoothing.info.signal,)),
        )
        return jax.lax.while_loop(unfinished, advance, (run, history, first))

    compiled = jax.jit(block, donate_argnums=(0,) if donate else ())

    def go_on(
        run: Run, batches: PyTree, first: int, last: int, moving: bool
    ) -> tuple[Run, History]:
        run, history, end = compiled(
            run, batches, np.int32(first), np.int32(last), np.bool_(moving)
        )
        history, end = jax.device_get((history, end))
        return run, jax.tree.map(lambda column: column[first:end], history)

    return Loop(start, go_on)
