"""A figure of a run: its objective, and how far its estimates can be trusted."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lejax._info import TRUSTED_SAMPLE_SIZE, Info
from lejax._run.history import History, known, record
from lejax._run.result import MinimizeResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The certified share is a mean over this many parts of a run.
PARTS = 20


def plot(result: MinimizeResult | Info) -> Figure:
    """Draw the history of a run: objective, effective samples, signal, certainty.

    Use it to see whether a run has converged, and whether its estimates were good
    enough. It needs matplotlib. Panels of quantities that the sampler does not estimate
    are left out. The horizontal axis counts evaluations of the loss,

        n_k = Σ_{i≤k} J_i.

    Args:
        result: the result of `minimize`; or, from a loop of your own, an `Info` whose
            fields have a leading axis of updates, as `jax.lax.scan` collects them.

    Returns:
        A `matplotlib.figure.Figure`, of up to three panels: the objective with a band
        of two standard errors; the effective sample size, with a line at 20, below
        which estimates of local entropy are unreliable; `signal` of each update, and
        the share of certified updates in each twentieth of the run.

    Raises:
        TypeError: `result` is neither.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import jax, jax.numpy as jnp, lejax
        >>> result = lejax.minimize(
        ...     lambda x: jnp.sum(x**2), jnp.ones(3), tau=0.1, key=jax.random.key(0),
        ...     num_updates=20,
        ... )
        >>> figure = lejax.plot(result)
        >>> print([axes.get_ylabel() for axes in figure.axes])
        ['objective', 'effective samples', 'share']

    References:
        The quantities are defined in `Info`.
    """
    history = _history(result)
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ImportError(
            "lejax.plot needs matplotlib, which is not installed; "
            "run python -m pip install matplotlib."
        ) from error
    panels = [
        panel
        for panel, shown in (
            (_objective, history.objective),
            (_effective, history.effective_sample_size),
            (_shares, history.signal),
        )
        if known(shown).any()
    ]
    figure, axes = pyplot.subplots(
        max(len(panels), 1),
        1,
        sharex=True,
        squeeze=False,
        figsize=(7, 1 + 1.9 * max(len(panels), 1)),
        layout="constrained",
    )
    evaluations = np.cumsum(history.num_evaluations, dtype=np.int64)
    for panel, own in zip(panels, axes[:, 0], strict=False):
        panel(own, evaluations, history)
        own.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("evaluations")
    axes[-1, 0].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if "inline" in pyplot.get_backend():
        pyplot.close(figure)  # a cell would show it a second time
    return figure


def _history(result: MinimizeResult | Info) -> History:
    """The history of a run, or of infos that were collected."""
    if isinstance(result, MinimizeResult):
        return result.history
    if not isinstance(result, Info) or np.ndim(result.objective) != 1:
        raise TypeError(
            "result must be what lejax.minimize returned, or an Info of several "
            f"updates, whose fields have one axis, got {result!r:.60}; pass for "
            "example lejax.plot(result), or collect the infos by jax.lax.scan."
        )
    scalars = jax.tree.map(np.asarray, result._replace(aux=None, gradient=None))
    nothing = np.full(scalars.objective.shape, np.nan)
    return record(scalars, squared_norm=nothing, slope=nothing, certified=nothing)


def _objective(axes: Any, evaluations: np.ndarray, history: History) -> None:
    values = np.where(known(history.objective), history.objective, np.nan)
    error = np.where(known(history.standard_error), history.standard_error, np.nan)
    axes.plot(evaluations, values, lw=1.2)
    band = values - 2 * error, values + 2 * error
    axes.fill_between(evaluations, *band, alpha=0.25, lw=0, label="± 2 standard errors")
    axes.set_ylabel("objective")
    if np.isfinite(error).any():
        axes.legend(frameon=False)


def _effective(axes: Any, evaluations: np.ndarray, history: History) -> None:
    values = history.effective_sample_size
    axes.plot(evaluations, np.where(known(values), values, np.nan), lw=1.2)
    axes.axhline(TRUSTED_SAMPLE_SIZE, color="0.5", ls=":", lw=1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("effective samples")


def _shares(axes: Any, evaluations: np.ndarray, history: History) -> None:
    signal = np.where(known(history.signal), history.signal, np.nan)
    axes.plot(evaluations, signal, lw=1.2, label="signal")
    parts = [
        part
        for part in np.array_split(np.arange(len(evaluations)), PARTS)
        if part.size and known(history.certified[part]).any()
    ]
    if parts:
        shares = [
            history.certified[part][known(history.certified[part])] for part in parts
        ]
        axes.plot(
            [evaluations[part].mean() for part in parts],
            [share.mean() for share in shares],
            "o-",
            ms=3,
            lw=1,
            label="certified updates",
        )
    axes.set_ylim(-0.25, 1.05)
    axes.set_ylabel("share")
    axes.legend(frameon=False, loc="best")
