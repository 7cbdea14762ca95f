"""The report on the leaves: which are reduced, and which have credit by example."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from lejax._internal.checks import float_leaves
from lejax._internal.types import LossFn, PyTree
from lejax._tracing.known_rows import LeafUse
from lejax._tracing.loss import traced
from lejax._tracing.partial_eval import leaf_uses_of
from lejax._tracing.per_example import read_per_example
from lejax._tracing.program import program_of


class LeafReport(NamedTuple):
    """The report on one leaf of the parameters.

    Attributes:
        name: the path of the leaf, as `jax.tree_util.keystr` writes it.
        shape: the shape of the leaf.
        reduced_shape: the shape of its draws.
        reason: the number of rows that the loss multiplies with the leaf, or why the
            leaf is not reduced.
        credit: "by example" if the leaf has credit by example in `importance` and
            `score_function`; else why not.
    """

    name: str
    shape: tuple[int, ...]
    reduced_shape: tuple[int, ...]
    reason: str
    credit: str


class ReductionReport(NamedTuple):
    """The result of `reduction_report`: a report on every leaf.

    Print it for a table. Read its attributes in code, for example to test that a change
    of the loss keeps the reduction.

    Attributes:
        leaves: a report for each leaf, with `name`, `shape`, `reduced_shape`,
            `reason` and `credit`.

    Examples:
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
        """The number of parameters."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    @property
    def reduced_size(self) -> int:
        """The number of entries of a draw."""
        return sum(math.prod(leaf.reduced_shape) for leaf in self.leaves)

    def __repr__(self) -> str:
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
    value_fn: LossFn,
    params: PyTree,
    batch: PyTree = None,
    *,
    inner_batches: bool = False,
    has_aux: bool = False,
) -> ReductionReport:
    """Reports which leaves the samplers draw in fewer dimensions, and why not.

    Call it once before a run. It gives the shape of each leaf's draws, and the
    operation in the loss that prevents the reduction or the credit of a leaf. It traces
    the loss and draws nothing. It does not apply to `gaussian` and `ask_tell`, which
    draw all parameters and use no credit.

    A leaf W is reduced if the loss uses it only in products A W with rows A (m, n) that
    depend on no parameter, and m < n. The samplers then draw m of its n directions. The
    reduction is exact:

        A W = Rᵀ U,   Aᵀ = Q R,   U = QᵀW ~ N(Qᵀx, τI) if W ~ N(x, τI).

    Examples are the first dense layer, on batches smaller than its inputs, and an
    embedding table from which a batch reads m of n rows. A row of A that is not finite
    fails every sample that uses it. Derivatives through a sampler with respect to A
    hold Q fixed. The derivative of F_τ is then unbiased. The derivative of the
    displacement is biased: turn the reduction off for it.

    Credit by example is a per-example control variate. It applies to leaves whose noise
    affects an example only through its own rows: dense layers and convolutions at any
    depth. An example must have fewer positions than a row has entries. The last column
    is "by example" for these leaves, and the reason why not for the others.
    `importance` uses credit for all of these leaves. `score_function` and
    `importance_by_example` use it for those on which the loss depends only through its
    sum over the examples.

    Args:
        value_fn: the loss, as you pass it to the samplers.
        params: the parameters that are sampled; with a mask, only the selected ones,
            while `value_fn` closes over the others.
        batch: a batch, or with `inner_batches` a stack of them. Only the shapes and
            dtypes of its arrays matter.
        inner_batches: as in `sgld`; the rows of all inner batches count.
        has_aux: whether `value_fn` returns a pair (f, aux).

    Returns:
        A `ReductionReport`; print it.

    Raises:
        ValueError, TypeError: `value_fn` is not a scalar loss of these parameters on
            this batch.

    Examples:
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
        trick*: a related idea.
    """
    params = float_leaves(params)
    loss = traced(value_fn, params, batch, inner_batches=inner_batches, has_aux=has_aux)
    program = program_of(loss)
    leaf_uses = leaf_uses_of(program, params, loss.batches)
    reasons = read_per_example(program, len(leaf_uses)).reasons
    if inner_batches:
        reasons = ("not with inner batches",) * len(leaf_uses)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return ReductionReport(
        tuple(
            _leaf_report(
                jax.tree_util.keystr(path), leaf.shape, leaf_use, why or "by example"
            )
            for (path, leaf), leaf_use, why in zip(
                leaves, leaf_uses, reasons, strict=True
            )
        )
    )


def _leaf_report(
    name: str, shape: tuple[int, ...], leaf_use: LeafUse | str, credit: str
) -> LeafReport:
    reason = leaf_use if isinstance(leaf_use, str) else leaf_use.why_whole
    if isinstance(leaf_use, str) or reason:
        return LeafReport(name, shape, shape, reason, credit)
    reason = f"{leaf_use.num_rows} rows meet {leaf_use.row_length(shape)} inputs"
    return LeafReport(
        name,
        shape,
        leaf_use.reduced_shape(shape),
        reason if leaf_use.operands else "the loss does not use it",
        credit,
    )
