"""What is read off a loss, for a person: directions, and credit by example."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lejax._internal.checks import float_leaves
from lejax._internal.loss import check_objective, first_batch, without_aux
from lejax._internal.trees import PyTree
from lejax._tracing.known_rows import LeafUse
from lejax._tracing.partial_eval import find_reduced
from lejax._tracing.per_example import read_per_example


class LeafReport(NamedTuple):
    """One leaf of the parameters.

    Attributes:
        name: its path, as `jax.tree_util.keystr` writes it.
        shape: of the leaf.
        reduced_shape: of its draws.
        reason: how the loss meets it, or why it is not reduced.
        credit: "by example" where the examples of the batch see its noise apart, and
            `importance` and `score_function` give each its own part; else why not.
    """

    name: str
    shape: tuple[int, ...]
    reduced_shape: tuple[int, ...]
    reason: str
    credit: str


class ReductionReport(NamedTuple):
    """All leaves; printed, a table.

    Attributes:
        leaves: one report each, with `name`, `shape`, `reduced_shape`, `reason` and
            `credit`.

    Example:
        >>> import jax.numpy as jnp, lejax
        >>> def loss(w, x):
        ...     return jnp.mean(x @ w)
        >>> report = lejax.reduction_report(loss, jnp.zeros(100), jnp.ones((20, 100)))
        >>> print(report.size, report.reduced_size, report.leaves[0].reason)
        100 20 20 rows meet 100 inputs
    """

    leaves: tuple[LeafReport, ...]

    @property
    def size(self) -> int:
        """The numbers in the parameters."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    @property
    def reduced_size(self) -> int:
        """The numbers in a draw."""
        return sum(math.prod(leaf.reduced_shape) for leaf in self.leaves)

    def __str__(self) -> str:
        rows = [("leaf", "shape", "drawn", "", "credit")]
        rows += [
            (
                leaf.name,
                str(leaf.shape),
                str(leaf.reduced_shape),
                leaf.reason,
                leaf.credit,
            )
            for leaf in self.leaves
        ]
        rows.append(("in all", str(self.size), str(self.reduced_size), "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)


def reduction_report(
    value_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree = None,
    *,
    inner_batches: bool = False,
    has_aux: bool = False,
) -> ReductionReport:
    """Which leaves of the parameters the samplers draw in fewer dimensions, and why.

    A leaf W that the loss meets only in products A W with rows A (m, n) that depend on
    no parameter, m < n, is drawn in m of n directions, exactly:

        A W = Rᵀ U,   Aᵀ = Q R,   U = QᵀW ~ N(Qᵀx, τI) where W ~ N(x, τI).

    The first dense layer is such a leaf, on batches smaller than its inputs; an
    embedding table, of which a batch reads m of n rows, is another. A row of A that is
    not finite makes every sample fail that meets it. Derivatives that somebody takes
    through a sampler with respect to A hold Q fixed: that of F_τ is unbiased, that of
    the displacement itself is not; turn the reduction off for it.

    Credit by example is for leaves whose noise the examples of the batch see apart:
    dense layers and convolutions of any depth, while the rows of an example, its
    positions, are fewer than the numbers of a row. The last column says "by example" of
    these, of the others why not. `importance` uses it for all of them,
    `score_function` and `importance_by_example` for those on which the loss depends by
    its sum over the examples alone.

    Args:
        value_fn: the loss, as the samplers get it.
        params: the parameters that are sampled; with a mask, those alone that it
            selects, the others being closed over.
        batch: a batch, or with `inner_batches` a stack of them; arrays, of which but
            the shapes and dtypes matter.
        inner_batches: as in `sgld`: the rows of all inner batches count.
        has_aux: whether `value_fn` returns a pair (f, aux).

    Returns:
        A `ReductionReport`, to be printed.

    Raises:
        ValueError, TypeError: `value_fn` is not a scalar loss of these parameters on
            this batch.

    Example:
        >>> import jax.numpy as jnp, lejax
        >>> params = {"w": jnp.zeros((100, 3)), "b": jnp.zeros(3), "v": jnp.zeros(3)}
        >>> def loss(params, x):
        ...     hidden = jnp.tanh(x @ params["w"] + params["b"])
        ...     return jnp.mean(hidden @ params["v"])
        >>> print(lejax.reduction_report(loss, params, jnp.ones((20, 100))))
        leaf    shape     drawn                                   credit
        ['b']   (3,)      (3,)     used by broadcast_in_dim       by example
        ['v']   (3,)      (3,)     its rows depend on parameters  by example
        ['w']   (100, 3)  (20, 3)  20 rows meet 100 inputs        by example
        in all  306       66

    References:
        Kingma, Salimans, Welling, *Variational dropout and the local reparameterization
        trick*, of which it is a relative.
    """
    params = float_leaves(params)
    first = first_batch(batch) if inner_batches else batch
    check_objective(value_fn, params, first, has_aux=has_aux)
    loss = without_aux(value_fn) if has_aux else value_fn
    program, found = find_reduced(loss, params, batch, inner_batches)
    credit = read_per_example(program, len(found)).reasons
    if inner_batches:
        credit = ("batches take turns",) * len(found)
    return ReductionReport(
        tuple(
            _leaf_report(
                jax.tree_util.keystr(path), leaf.shape, met, why or "by example"
            )
            for (path, leaf), met, why in zip(
                jax.tree_util.tree_leaves_with_path(params), found, credit, strict=True
            )
        )
    )


def _leaf_report(
    name: str, shape: tuple[int, ...], met: LeafUse | str, credit: str
) -> LeafReport:
    if isinstance(met, str) or met.whole:
        why = met if isinstance(met, str) else met.whole
        return LeafReport(name, shape, shape, why, credit)
    reason = f"{met.rows} rows meet {met.size(shape)} inputs"
    return LeafReport(
        name,
        shape,
        met.reduced_shape(shape),
        reason if met.uses else "the loss does not use it",
        credit,
    )
