"""Losses that are evaluated elsewhere: points are asked for, and their losses told.

An update is a pure function of J losses. So it runs twice: once to see at which points
they are wanted, and once with what was found there.
"""

from __future__ import annotations

import operator
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

# One for each point in their order, or by the numbers of some.
Losses: TypeAlias = npt.ArrayLike | Mapping[int, Scalar]


class AskTellState(NamedTuple):
    """The state of `ask_tell`.

    Attributes:
        inner: that of the transformation, whose `info` tells about the last update.
        failed: how many updates in a row had no loss that was finite.

    Examples:
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
        ask: `ask(state, params) -> points`: parameters with a leading axis of all J,
            NumPy arrays, and always the same for the same update.
        tell: `tell(points, losses, state, params) -> (updates, state)`.

    Examples:
        An update from the losses of all points but one:

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
    """Let the losses of a transformation be evaluated outside of JAX.

        X_1, …, X_J ~ φ,   x_{k+1} = x_k + U(f(X_1), …, f(X_J))

    For simulators that run on other machines, take hours, or fail. `ask` gives the
    points of the next update, numbers out, and `tell` makes the update of their losses,
    numbers in: in any order, at any time, some of them missing. What is missing, NaN or
    infinite counts as failed, a sample without weight, and costs no more than itself.

    Nothing is kept between the two but what they return. After a crash ask again, or
    read state, parameters and points from disk: the points are the same, and those
    whose losses are known need no second evaluation. `tell` draws them again to see
    that they are.

    Args:
        tx: `local_entropy`, `heat` or `gaussian`, or a chain that begins with one, by
            `importance` (shaped as well) or `score_function`, and has no other.
            Reduction and credit by example do not apply: nobody sees how the losses
            are made. Updates are made of losses in single precision, but for x64: take
            a constant off that is large against their differences.
        max_failures: after so many updates in a row without a finite loss `tell` stops.

    Returns:
        An `AskTell`, three functions for the host, which compile what is inside. Losses
        are one number for each point, an array (J,) in their order; or a mapping from
        the number of a point to its loss, which may lack some.

    Raises:
        ValueError: from `ask`, nothing in `tx` evaluates a loss, or more than one
            thing; its sampler needs more than losses, or shares its draws over an axis.
            From `tell`, there are more or fewer losses than points, a number is that of
            no point, or the points are those of another update: another state, as after
            a `tell` of the same, other parameters, or another `tx`.
        TypeError: `tx` is no transformation; it is called under `jax.jit`; what is told
            is no real number; or `tx` has `has_aux`, for which there is no value.
        RuntimeError: from `tell`, all losses failed in `max_failures` updates in a row.

    Examples:
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
        ...     points = search.ask(state, x)
        ...     losses = {j: (points[j] ** 2).sum() for j in range(0, 200, 2)}
        ...     updates, state = search.tell(points, losses, state, x)
        ...     x = optax.apply_updates(x, updates)
        >>> print(bool(abs(x).max() < 0.3))
        True

    References:
        Ask and tell are those of Collette, Hansen, Pujol, Salazar Aponte, Le Riche,
        *On object-oriented programming of optimizers*.
    """
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"tx must be an optax transformation, got {tx!r}; pass for example "
            "lejax.local_entropy(sampler, tau, key=key), or a chain that begins so."
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
                "a chain that begins with one of them and has no other."
            )
        return wanted[0]

    @jax.jit
    def told(losses: jax.Array, least: Any, state: PyTree, params: PyTree) -> PyTree:
        updates, inner = update(lambda points: losses, state, params)
        # The losses are those above the least.
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
        # What is too large for the device has failed, as has what is not finite.
        limit = jnp.finfo(jnp.zeros(()).dtype).max / 2
        values = np.where(np.abs(values) < float(limit), values, np.nan)
        failed = int(state.failed) + 1 if np.isnan(values).all() else 0
        # Differences are taken in the precision in which the losses are told.
        least = np.float64(np.nanmin(values) if not failed else 0)
        if failed >= max_failures:
            raise RuntimeError(
                f"all losses of {failed} updates in a row failed; look at one of the "
                "points by hand, move params to where the simulator runs, or make tau "
                "smaller, so that points lie nearer to them."
            )
        above = jnp.asarray(values - least)
        updates, inner = told(above, least, state.inner, of_strong_types(params))
        return updates, AskTellState(inner, jnp.asarray(failed, jnp.int32))

    return AskTell(init, ask, tell)


def _check_the_same(points: PyTree, again: PyTree, params: PyTree) -> None:
    """Refuse points that are not drawn again, but for rounding on other machines."""
    same = jax.tree.structure(points) == jax.tree.structure(again)
    trees = map(jax.tree.leaves, (points, again, params))
    for leaf, other, x in zip(*trees, strict=False):
        if jnp.issubdtype(jnp.result_type(other), jax.dtypes.prng_key):
            continue  # what a mask left out is no part of a point
        a, b, x = (np.asarray(value, np.float64) for value in (leaf, other, x))
        real = jnp.issubdtype(other.dtype, jnp.floating)
        eps = float(jnp.finfo(other.dtype).eps) if real else 0
        far = np.abs(b - x).max(initial=0) / 100 + 8 * eps * np.abs(x).max(initial=0)
        same = same and a.shape == b.shape and np.abs(a - b).max(initial=0) <= far
    if not same:
        raise ValueError(
            "points are those of another update than state and params ask for, with "
            "which they were not asked for, or which went on since; pass what ask was "
            "called with, or ask again."
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
                f"losses has a number {number!r}, and there are points 0 to "
                f"{count - 1}; pass the losses of these points, by their numbers."
            )
        values[place] = _real(f"losses[{place}]", loss, ())
    return values


def _real(name: str, losses: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.ma.asarray(losses)
    if values.dtype.kind not in "fiub" and values.dtype != jnp.bfloat16:
        raise TypeError(
            f"{name} must be real, got {values.dtype}: {losses!r:.60}; pass numbers, "
            "and NaN for what failed."
        )
    if values.shape != shape:
        raise ValueError(
            f"{name} must have the shape {shape}, got {values.shape}; pass one number "
            "for each point, NaN for what failed, or a mapping from numbers of points "
            "to losses."
        )
    return np.ma.filled(values.astype(np.float64), np.nan)
