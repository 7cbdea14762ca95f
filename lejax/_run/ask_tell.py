"""Ask for points and tell their losses, for losses evaluated outside of JAX.

An update is a pure function of J losses, so it runs twice: once to record the points,
and once with their losses.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from lejax._info import Info
from lejax._internal.checks import positive_count, untraced
from lejax._internal.trees import of_strong_types
from lejax._internal.types import PyTree, Scalar
from lejax._tracing.loss import OutsideLoss

# An array with one loss for each point, or a mapping from numbers of points to losses.
Losses: TypeAlias = npt.ArrayLike | Mapping[int, Scalar]


class AskTellState(NamedTuple):
    """The state of `ask_tell`.

    It is a tree of arrays: save it with the parameters, and go on after a crash.

    Attributes:
        inner: the state of the transformation; `optax.tree.get(inner, "info")` is the
            `Info` of the last update.
        failed: the number of updates in a row without a finite loss.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> smooth = lejax.heat(lejax.score_function(4), 1.0, key=jax.random.key(0))
        >>> search, x = lejax.ask_tell(smooth), jnp.full(3, 5.0)
        >>> state = search.init(x)
        >>> _, state = search.tell(search.ask(state, x), {0: 1.0, 1: 2.0}, state, x)
        >>> print(state.inner.step, state.failed)
        1 0
    """

    inner: PyTree
    failed: jax.Array


class AskTell(NamedTuple):
    """The three functions that `ask_tell` returns.

    Use them in turn: `init` once, then `ask` and `tell` for each update.

    Attributes:
        init: `init(params) -> state`.
        ask: `ask(state, params) -> points`: a tree like params of NumPy arrays, with a
            leading axis of J points; always the same for the same state and params.
        tell: `tell(points, losses, state, params) -> (updates, state)`.

    Examples:
        An update from the losses of 99 of 100 points:

        >>> import jax, jax.numpy as jnp, lejax
        >>> smooth = lejax.heat(lejax.score_function(100), 1.0, key=jax.random.key(0))
        >>> search, x = lejax.ask_tell(smooth), jnp.zeros(())
        >>> state = search.init(x)
        >>> points = search.ask(state, x)
        >>> losses = {j: 3 * float(points[j]) for j in range(99)}
        >>> gradient, state = search.tell(points, losses, state, x)
        >>> print(points.shape, bool(1 < gradient < 5))
        (100,) True
    """

    init: Callable[[PyTree], AskTellState]
    ask: Callable[[AskTellState, PyTree], PyTree]
    tell: Callable[[PyTree, Losses, AskTellState, PyTree], tuple[PyTree, AskTellState]]


def ask_tell(
    tx: optax.GradientTransformationExtraArgs, *, max_failures: int = 5
) -> AskTell:
    """Ask for points and tell their losses, for losses evaluated outside of JAX.

    Use it for simulators that run on other machines, take hours, or fail. If the
    simulator can run inside of JAX, by `jax.pure_callback`, use the transformation
    itself, which is simpler. The two calls correspond to pycma's `ask` and `tell`, with
    the state passed explicitly.

        X_1, …, X_J ~ φ,   x_{k+1} = x_k + U(f(X_1), …, f(X_J))

    `ask` returns the points of the next update, and `tell` makes the update from their
    losses. Losses may come in any order, at any time. Missing, NaN and infinite losses
    count as failed samples, which have no weight.

    All state is in the values that the functions return. After a crash ask again, or
    read the state, the parameters and the points from disk: the points are the same,
    and losses that you have stay valid. `tell` draws the points again to check this.

    Args:
        tx: `local_entropy`, `heat` or `gaussian`, or a chain with exactly one of them,
            at its head. The sampler is `importance` or `score_function`. Reduction and
            credit by example do not apply. Losses are used in single precision
            (double with x64), after their minimum is subtracted.
        max_failures: `tell` raises after this many updates in a row without a finite
            loss.

    Returns:
        An `AskTell`, three functions to call outside of `jax.jit`. Losses are an array
        (J,) in the order of the points, or a mapping from the numbers of some points to
        their losses.

    Raises:
        ValueError: from `ask`, if `tx` evaluates no loss or makes more than one
            estimate, or its sampler needs more than losses or shares its draws over an
            axis. From `tell`, if the numbers of losses and points differ, a number has
            no point, or the points belong to another update: another state (as after a
            `tell`), other parameters, or another `tx`. `max_failures` is not a positive
            integer.
        TypeError: `tx` is no transformation or has `has_aux`, a call is under
            `jax.jit`, or a loss is not a real number.
        RuntimeError: from `tell`, if all losses failed in `max_failures` updates in a
            row.

    Examples:
        Any Python code may compute the losses; here half of them are missing.

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
        ...     points = search.ask(state, x)
        ...     losses = {j: (points[j] ** 2).sum() for j in range(0, 200, 2)}
        ...     updates, state = search.tell(points, losses, state, x)
        ...     x = optax.apply_updates(x, updates)
        >>> print(bool(abs(x).max() < 0.3))
        True

    References:
        Collette, Hansen, Pujol, Salazar Aponte, Le Riche, *On object-oriented
        programming of optimizers*.
    """
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"tx must be an optax transformation, got {tx!r}; pass for example "
            "lejax.local_entropy(sampler, tau, key=key), or a chain that it heads."
        )
    max_failures = positive_count("max_failures", max_failures)
    tx = optax.with_extra_args_support(tx)

    def update(
        losses_of: Callable[[PyTree], jax.Array], state: PyTree, params: PyTree
    ) -> PyTree:
        zeros = optax.tree.zeros_like(params)
        loss = OutsideLoss(losses_of)
        return tx.update(zeros, state, params, value_fn=loss, batch=None)

    @jax.jit
    def asked(state: PyTree, params: PyTree) -> PyTree:
        wanted: list[PyTree] = []

        def note(points: PyTree) -> jax.Array:
            wanted.append(points)
            return jnp.zeros(len(jax.tree.leaves(points)[0]))

        update(note, state, params)
        if len(wanted) != 1:
            much = "losses for more than one estimate" if wanted else "no loss"
            raise ValueError(
                f"tx evaluates {much}; pass lejax.local_entropy, heat or gaussian, or "
                "a chain with exactly one of them, at its head."
            )
        return wanted[0]

    @jax.jit
    def told(losses: jax.Array, least: Any, state: PyTree, params: PyTree) -> PyTree:
        updates, inner = update(lambda points: losses, state, params)
        # The losses were passed less their minimum.
        inner = jax.tree.map(
            lambda node: (
                node._replace(objective=node.objective + least.astype(losses.dtype))
                if isinstance(node, Info)
                else node
            ),
            inner,
            is_leaf=lambda node: isinstance(node, Info),
        )
        return updates, inner

    def init(params: PyTree) -> AskTellState:
        return AskTellState(tx.init(params), jnp.zeros((), jnp.int32))

    def ask(state: AskTellState, params: PyTree) -> PyTree:
        untraced("ask", (state, params), "call it outside jax.jit and jax.vmap.")
        return jax.device_get(asked(state.inner, of_strong_types(params)))

    def tell(
        points: PyTree, losses: Losses, state: AskTellState, params: PyTree
    ) -> tuple[PyTree, AskTellState]:
        untraced("tell", (losses, state), "call it outside jax.jit and jax.vmap.")
        again = ask(state, params)
        _check_the_same(points, again, params)
        count = len(jax.tree.leaves(again)[0])
        values = _by_number(losses, count)
        # Losses too large for the device's dtype fail, like those that are not finite.
        limit = jnp.finfo(jnp.zeros(()).dtype).max / 2
        values = np.where(np.abs(values) < float(limit), values, np.nan)
        failed = int(state.failed) + 1 if np.isnan(values).all() else 0
        # The minimum is subtracted in double precision, before losses go to the device.
        least = np.float64(np.nanmin(values) if not failed else 0)
        if failed >= max_failures:
            raise RuntimeError(
                f"all losses of {failed} updates in a row failed; evaluate one of the "
                "points by hand, pass params at which the simulator runs, or make tau "
                "smaller, so that points lie closer to params."
            )
        if failed == 1:
            warnings.warn(
                f"all {count} losses of this update failed, so nothing moves; pass "
                "params at which the simulator runs, make tau smaller, or scale the "
                "parameters, so that points lie closer to params.",
                stacklevel=2,
            )
        above = jnp.asarray(values - least)
        updates, inner = told(above, least, state.inner, of_strong_types(params))
        return updates, AskTellState(inner, jnp.asarray(failed, jnp.int32))

    return AskTell(init, ask, tell)


def _check_the_same(points: PyTree, again: PyTree, params: PyTree) -> None:
    """Refuse points that differ from `again` by more than rounding."""
    same = jax.tree.structure(points) == jax.tree.structure(again)
    trees = map(jax.tree.leaves, (points, again, params))
    for leaf, other, x in zip(*trees, strict=False):
        if jnp.issubdtype(jnp.result_type(other), jax.dtypes.prng_key):
            continue  # a leaf that a mask excludes
        a, b, x = (np.asarray(value, np.float64) for value in (leaf, other, x))
        real = jnp.issubdtype(other.dtype, jnp.floating)
        eps = float(jnp.finfo(other.dtype).eps) if real else 0
        far = np.abs(b - x).max(initial=0) / 100 + 8 * eps * np.abs(x).max(initial=0)
        same = same and a.shape == b.shape and np.abs(a - b).max(initial=0) <= far
    if not same:
        raise ValueError(
            "points are those of another update: ask returned them for another state, "
            "other params or another tx; pass the state and params with which ask was "
            "called, or ask again."
        )


def _by_number(losses: Losses, count: int) -> np.ndarray:
    """The losses of all points, NaN where one is missing."""
    if not isinstance(losses, Mapping):
        return _real("losses", losses, (count,))
    values = np.full(count, np.nan)
    for number, loss in losses.items():
        try:
            place = -1 if isinstance(number, bool) else operator.index(number)
        except TypeError:
            place = -1
        if not 0 <= place < count:
            raise ValueError(
                f"losses has the number {number!r}, and there are points 0 to "
                f"{count - 1}; pass the losses of these points, by their numbers."
            )
        values[place] = _real(f"losses[{place}]", loss, ())
    return values


def _real(name: str, losses: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.ma.asarray(losses)
    if values.dtype.kind not in "fiub" and values.dtype != jnp.bfloat16:
        raise TypeError(
            f"{name} must be real, got {values.dtype}: {losses!r:.60}; pass numbers, "
            "and NaN for failures."
        )
    if values.shape != shape:
        raise ValueError(
            f"{name} must have the shape {shape}, got {values.shape}; pass one number "
            "for each point, NaN for failures, or a mapping from numbers of points to "
            "losses."
        )
    return np.ma.filled(values.astype(np.float64), np.nan)
