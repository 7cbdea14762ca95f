"""Losses that are evaluated elsewhere: points are asked for, and their losses told.

An update is a pure function of its losses, which it knows by the number of the draw.
So it runs twice: once with a loss that only writes down where it is wanted, and once
with one that looks up what was found there.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lejax._objective import DrawNumber
from lejax._trees import PyTree
from lejax._validate import positive_count


class Ticket(NamedTuple):
    """The points of an update. A tree of arrays: what writes these keeps it on disk.

    Attributes:
        points: the parameters to evaluate, with a leading axis of all J, NumPy arrays.
        update: which update asks for them, as told by its state and parameters.

    Example:
        Two pairs about x:

        >>> import jax, jax.numpy as jnp, lejax
        >>> smooth = lejax.heat(lejax.score_function(4), 1.0, key=jax.random.key(0))
        >>> search, x = lejax.ask_tell(smooth), jnp.full(3, 5.0)
        >>> ticket = search.ask(search.init(x), x)
        >>> print(ticket.points.shape, ticket.points.mean(0))
        (4, 3) [5. 5. 5.]
    """

    points: PyTree
    update: np.ndarray


class AskTellState(NamedTuple):
    """The state of `ask_tell`.

    Attributes:
        inner: that of the transformation, whose `info` tells about the last update.
        failed: how many updates in a row had no loss that was finite.

    Example:
        >>> import jax, jax.numpy as jnp, lejax
        >>> smooth = lejax.heat(lejax.score_function(4), 1.0, key=jax.random.key(0))
        >>> search, x = lejax.ask_tell(smooth), jnp.full(3, 5.0)
        >>> state = search.init(x)
        >>> _, state = search.tell(search.ask(state, x), {}, state, x)
        >>> print(state.inner.step, state.failed)
        1 1
    """

    inner: PyTree
    failed: jax.Array


class AskTell(NamedTuple):
    """What `ask_tell` returns.

    Attributes:
        init: `init(params) -> state`.
        ask: `ask(state, params) -> ticket`: always the same for the same update.
        tell: `tell(ticket, losses, state, params) -> (updates, state)`.

    Example:
        An update from the losses of all points but one:

        >>> import jax, jax.numpy as jnp, lejax
        >>> smooth = lejax.heat(lejax.score_function(100), 1.0, key=jax.random.key(0))
        >>> search, x = lejax.ask_tell(smooth), jnp.zeros(())
        >>> state = search.init(x)
        >>> ticket = search.ask(state, x)
        >>> losses = {j: 3 * float(ticket.points[j]) for j in range(99)}
        >>> gradient, state = search.tell(ticket, losses, state, x)
        >>> print(bool(2 < gradient < 4))
        True
    """

    init: Callable[[PyTree], AskTellState]
    ask: Callable[[AskTellState, PyTree], Ticket]
    tell: Callable[[Ticket, Any, AskTellState, PyTree], tuple[PyTree, AskTellState]]


def ask_tell(
    tx: optax.GradientTransformationExtraArgs, *, max_failures: int = 5
) -> AskTell:
    """Let the losses of a transformation be evaluated outside of JAX.

        X_1, …, X_J ~ φ,   x_{k+1} = x_k + U(f(X_1), …, f(X_J))

    For simulators that run on other machines, take hours, or fail. `ask` gives the
    points of the next update, numbers out, and `tell` makes the update of their losses,
    numbers in: in any order, at any time, some of them missing. What is missing, NaN or
    +inf counts as failed, a sample without weight, and costs no more than itself.

    Nothing is kept between the two but what they return. After a crash ask again, or
    read state, parameters and ticket from disk: the points are the same, and those
    whose losses are known need no second evaluation.

    Args:
        tx: `local_entropy`, `heat` or `gaussian`, or a chain that begins with one, by
            `importance` (shaped as well) or `score_function`. Reduction and credit by
            example do not apply: nobody sees how the losses are made.
        max_failures: after so many updates in a row without a finite loss `tell` stops.

    Returns:
        An `AskTell`, three functions for the host: they are compiled inside, and must
        not be called under `jax.jit`. Losses are one number for each point, an array
        (J,) in their order; or a mapping from the number of a point to its loss, which
        may lack some.

    Raises:
        ValueError: from `ask`, the sampler needs more than losses, or shares its draws
            over an axis. From `tell`, there are more or fewer losses than points, a
            number is that of no point, or the ticket is of another update: another
            state, as after a `tell` of the same, or other parameters.
        TypeError: from `tell`, what is told is no array of real numbers.
        RuntimeError: from `tell`, all losses failed in `max_failures` updates in a row.

    Example:
        Any Python may find the losses; here half of them are never found.

        >>> import jax, jax.numpy as jnp, lejax, optax
        >>> search = lejax.ask_tell(
        ...     optax.chain(
        ...         lejax.local_entropy(
        ...             lejax.importance(200), tau=0.5, key=jax.random.key(0)
        ...         ),
        ...         optax.sgd(0.5),
        ...     )
        ... )
        >>> x = jnp.full(2, 3.0)
        >>> state = search.init(x)
        >>> for _ in range(20):
        ...     ticket = search.ask(state, x)
        ...     losses = {j: (ticket.points[j] ** 2).sum() for j in range(0, 200, 2)}
        ...     updates, state = search.tell(ticket, losses, state, x)
        ...     x = optax.apply_updates(x, updates)
        >>> print(bool(abs(x).max() < 0.3))
        True

    References:
        Ask and tell are those of Collette, Hansen, Pujol, Salazar Aponte, Le Riche,
        *On object-oriented programming of optimizers*.
    """
    max_failures = positive_count("max_failures", max_failures)
    alone = threading.Lock()
    noted: list[tuple[np.ndarray, PyTree]] = []

    def note(number: jax.Array, point: PyTree) -> np.ndarray:
        axes = np.ndim(number)  # those of vmap
        noted.append(
            jax.tree.map(
                lambda leaf: np.array(leaf).reshape(-1, *np.shape(leaf)[axes:]),
                (number, point),
            )
        )
        return np.zeros(np.shape(number), np.float32)

    def wanted(point: PyTree, number: Any) -> jax.Array:
        found = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(
            note, found, number, point, vmap_method="broadcast_all"
        )

    def update(value_fn: Callable[..., Any], state: PyTree, params: PyTree) -> PyTree:
        zeros = optax.tree.zeros_like(params)
        batch = DrawNumber()
        return tx.update(zeros, state, params, value_fn=value_fn, batch=batch)

    @jax.jit
    def asked(state: PyTree, params: PyTree) -> PyTree:
        return update(wanted, state, params)

    @jax.jit
    def told(losses: jax.Array, state: PyTree, params: PyTree) -> PyTree:
        def known(point: PyTree, number: Any) -> jax.Array:
            del point
            return losses[number]

        return update(known, state, params)

    def init(params: PyTree) -> AskTellState:
        return AskTellState(tx.init(params), jnp.zeros((), jnp.int32))

    def ask(state: AskTellState, params: PyTree) -> Ticket:
        with alone:
            noted.clear()
            jax.block_until_ready(asked(state.inner, params))
            numbers, points = jax.tree.map(lambda *parts: np.concatenate(parts), *noted)
        # In their order, and once: what is pure may be called again.
        _, first = np.unique(numbers, return_index=True)
        return Ticket(
            jax.tree.map(lambda leaf: leaf[first], points), _digest(state, params)
        )

    def tell(
        ticket: Ticket, losses: Any, state: AskTellState, params: PyTree
    ) -> tuple[PyTree, AskTellState]:
        if not np.array_equal(ticket.update, _digest(state, params)):
            raise ValueError(
                "ticket is of another update than state and params, of which it was "
                "not asked, or they went on since; pass those with which ask was called"
                ", or ask again."
            )
        count = len(jax.tree.leaves(ticket.points)[0])
        values = _by_number(losses, count)
        failed = 0 if np.isfinite(values).any() else int(state.failed) + 1
        if failed >= max_failures:
            raise RuntimeError(
                f"all losses of {failed} updates in a row failed; look at one point of "
                "the ticket by hand, move params to where the simulator runs, or make "
                "tau smaller, so that points lie nearer to them."
            )
        updates, inner = told(jnp.asarray(values), state.inner, params)
        return updates, AskTellState(inner, jnp.asarray(failed, jnp.int32))

    return AskTell(init, ask, tell)


def _by_number(losses: Any, count: int) -> np.ndarray:
    """The losses of all points, NaN where one is missing."""
    if isinstance(losses, Mapping):
        values = np.full(count, np.nan)
        for number, loss in losses.items():
            if number not in range(count):
                raise ValueError(
                    f"losses has a number {number!r}, and the ticket has points 0 to "
                    f"{count - 1}; pass the losses of this ticket, by their numbers."
                )
            values[number] = _real(loss, ())
        return values
    return _real(losses, (count,))


def _real(losses: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(losses)
    if values.dtype.kind not in "fiub" and values.dtype != jnp.bfloat16:
        raise TypeError(
            f"losses must be real numbers, got {values.dtype} of shape {values.shape}; "
            "pass NaN for what failed."
        )
    if values.shape != shape:
        raise ValueError(
            f"losses must have the shape {shape}, got {values.shape}; pass one number "
            "for each point of the ticket, NaN for what failed, or a mapping from "
            "numbers of points to losses."
        )
    return values.astype(np.float64)


def _digest(state: AskTellState, params: PyTree) -> np.ndarray:
    """What tells an update from all others."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves((state.inner, params)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return np.frombuffer(found.digest(), np.uint8)
