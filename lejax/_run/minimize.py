"""A whole run in one call: estimates, updates, and what is said of them at the end."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from lejax._info import Info
from lejax._internal.checks import (
    float_leaves,
    loss_function,
    optional_count,
    positive_count,
    typed_key,
    untraced,
    warn_of_rounding,
)
from lejax._internal.types import LossFn, PyTree, ScalarOrSchedule
from lejax._run.advice import advice
from lejax._run.batches import Block, make_blocks, signature
from lejax._run.history import History, joined, known_mean, signal_of
from lejax._run.loop import Loop, Run, make_program, start
from lejax._run.progress import check_progress, progress_bar
from lejax._run.result import MinimizeResult, estimate_text
from lejax._run.stopping import REASONS, make_rules
from lejax._samplers.gradient import check_sampler
from lejax._samplers.importance import importance
from lejax._samplers.sampler import Sampler, check_smoothing
from lejax._schedules.target_share import ShareController, first_tau
from lejax._tracing.compiled import same_optimizer
from lejax._tracing.loss import check_loss
from lejax._transforms.smoothing import Smoothing, rules_of

WHOLE_STEP = optax.sgd(1.0)


def minimize(
    value_fn: LossFn,
    params: PyTree,
    *,
    tau: ScalarOrSchedule | ShareController,
    key: jax.Array,
    batch: PyTree = None,
    batches: Iterable[PyTree] | None = None,
    sampler: Sampler | None = None,
    beta: ScalarOrSchedule = 1.0,
    optimizer: optax.GradientTransformation | None = None,
    num_updates: int = 1000,
    target_value: float | None = None,
    patience: int | None = None,
    callback: Callable[[int, PyTree, Info], object] | None = None,
    progress: bool | None = None,
    block_size: int | None = None,
    has_aux: bool = False,
) -> MinimizeResult:
    """Minimise a smoothed loss: a whole run, compiled, in one call.

        x_{k+1} = x_k + optimizer(∇F_{τ,β}(x_k)),   by default = x_k - βτ ∇F_{τ,β}(x_k),

    with F the local entropy, or F^H by a sampler of `heat`; by default the paper's
    Algorithm 1, or 2. It is the loop over `optax.chain(lejax.local_entropy(sampler,
    tau, key=key, beta=beta), optimizer)`, to rounding, with one estimate more: that of
    the parameters it returns.

    Updates run in blocks inside a compiled loop; the host calls back, shows progress
    and reads batches between them. Stopping rules are looked at in every update, so
    that the size of a block makes no difference to what comes out. What seems wrong
    with the settings is a warning at the end, which names the knob.

    Args:
        value_fn: the loss f: `value_fn(params, batch)`, or `value_fn(params)` where no
            batch is passed.
        params: x_0, any tree of floating arrays.
        tau: τ, the variance of the smoothing, in squared units of the parameters: a
            positive number, a schedule of the number of updates so far, or a controller
            made by `target_share`.
        key: a typed key, `jax.random.key(seed)`.
        batch: one batch for all updates; it may hold more than arrays.
        batches: an iterable instead, of a batch for every update, which are trees of
            arrays and numbers; the run stops where it ends, and `itertools.cycle` goes
            round. It is read a block ahead. Batches of other shapes, as the last of an
            epoch may be, are used as well: the loop is compiled once for each.
        sampler: any sampler; by default `importance(1000)`. One of heat minimises F^H.
        beta: β > 0, the inverse temperature, as in `local_entropy`; 1 for heat.
        optimizer: the optax transformation that makes updates of smoothed gradients; by
            default the paper's step is taken, whatever becomes of τ and β.
        num_updates: at most so many.
        target_value: stop at the first parameters whose estimated objective, plus its
            standard error where that is known, is not above it.
        patience: stop after so many estimates in a row in which the mean of the last
            `patience` objectives did not fall below the best such mean by more than its
            standard error, which comes from their scatter; 2 at least.
        callback: `callback(step, params, info)`, called after every block with the
            number of updates so far, their parameters, and the `Info` of the last
            estimate, made before the last update. If it returns something true, the run
            stops.
        progress: True for a bar by tqdm, False for none; None for one if tqdm is
            installed and stderr is a terminal.
        block_size: the most updates between two callbacks; by default a hundredth of
            `num_updates`, 100 at most. Fewer where batches are large.
        has_aux: whether `value_fn` returns a pair (f, aux); aux is left out.

    Returns:
        A `MinimizeResult`. After ten updates in a row without any effective sample the
        run stops as well.

    Raises:
        ValueError: a number, `progress` or `callback` is not what it should be; both
            `batch` and `batches` are passed, or `batches` is empty; `target_value` or
            `patience` with `sgld`, which does not estimate the objective; or as
            `local_entropy` and `heat`.
        TypeError: something is of another type than is said here, or traced.
        ImportError: `progress=True` without tqdm.

    Examples:
        An error count has no gradient; its local entropy has:

        >>> import jax, jax.numpy as jnp, lejax
        >>> inputs = jax.random.normal(jax.random.key(1), (200, 5))
        >>> labels = inputs @ jnp.arange(5.0) > 0
        >>> def error_rate(w):
        ...     return jnp.mean((inputs @ w > 0) != labels)
        >>> w = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0])
        >>> result = lejax.minimize(
        ...     error_rate, w, tau=0.1, beta=20.0, key=jax.random.key(0), num_updates=50
        ... )
        >>> print(bool(error_rate(result.params) < 0.05))
        True

    References:
        Garcia Trillos, Kaplan, Sanz-Alonso, Algorithms 1 and 2.
    """
    started = time.perf_counter()
    loss_function(value_fn)
    mend = "call it outside jax.jit and jax.vmap, or write the loop with local_entropy."
    untraced("minimize", (params, key, tau, beta, batch), mend)
    params = float_leaves(params)
    sampler = importance(1000) if sampler is None else sampler
    check_sampler(sampler, "local entropy", "heat")
    check_smoothing(sampler, first_tau(tau, sampler), beta)
    typed_key(key)
    warn_of_rounding(params, first_tau(tau, sampler))
    num_updates = positive_count("num_updates", num_updates)
    by_default = max(1, min(num_updates // 100, 100))
    size = min(optional_count("block_size", block_size) or by_default, num_updates)
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback must be a function (step, params, info), got {callback!r}; "
            "pass for example callback=lambda step, params, info: print(step)."
        )
    check_progress(progress)
    rules = make_rules(target_value, patience, sampler)
    smoothing_rules, numbers = rules_of(tau, beta)
    loop = Loop(
        Smoothing(sampler, smoothing_rules, displacement=optimizer is None),
        same_optimizer(_optimizer(optimizer), params),
        rules.patience,
        rules.target_value is not None,
        size,
        # What a callback gets it may keep.
        donate=callback is None,
    )
    params, history, done, reason = _run(
        loop,
        _without_aux(value_fn) if has_aux else value_fn,
        start(loop, key, params),
        make_blocks(batch, batches, num_updates, size),
        batch,
        (*numbers, rules.target_value),
        num_updates,
        callback,
        progress,
    )
    for sentence in advice(history, sampler):
        warnings.warn(sentence, stacklevel=2)
    return MinimizeResult(
        params=params,
        objective=float(history.objective[-1]),
        standard_error=known_mean(history.standard_error[-1:]),
        num_updates=done,
        # Of a long run it may exceed 32 bits.
        num_evaluations=int(history.num_evaluations.sum(dtype=np.int64)),
        seconds=time.perf_counter() - started,
        effective_sample_size=known_mean(history.effective_sample_size),
        nonfinite_fraction=known_mean(history.nonfinite_fraction),
        signal=signal_of(history),
        certified=known_mean(history.certified[:done]),
        history=history,
        reason=reason,
    )


def _run(
    loop: Loop,
    value_fn: LossFn,
    run: Run,
    blocks: Iterator[Block],
    batch: PyTree,
    numbers: tuple[Any, ...],
    num_updates: int,
    callback: Callable[[int, PyTree, Info], object] | None,
    progress: bool | None,
) -> tuple[PyTree, History, int, str]:
    """The last parameters, the history, the number of updates, and what stopped it."""
    parts: list[History] = []
    programs: dict[Any, Callable[..., tuple[Run, History]]] = {}
    done, last, stopped, block, reason = 0, 0, 0, None, "batches"

    def go_on(run: Run, block: Block, first: int, moving: bool) -> Run:
        one = jax.tree.map(lambda leaf: leaf[0], block.batches)
        shapes = signature(one)
        if shapes not in programs:
            if len(programs) == 1:
                warnings.warn(
                    f"batches have other shapes than before, {shapes[1]}: updates are "
                    "compiled anew for each; drop or fill up the last of an epoch if "
                    "that takes too long.",
                    stacklevel=4,
                )
            programs[shapes] = make_program(
                loop,
                value_fn,
                run.params,
                batch if block.batches is None else one,
                any_batch=block.batches is not None,
            )
        run, part = programs[shapes](run, block.batches, first, last, moving, numbers)
        parts.append(part)
        return run

    with progress_bar(progress, num_updates) as show:
        for block in blocks:
            last = min(block.size, num_updates - done)
            run = go_on(run, block, 0, True)
            part, stopped = parts[-1], int(run.watch.reason)
            done += part.objective.size - bool(stopped)
            show(done, estimate_text(part.objective[-1], part.standard_error[-1]))
            if callback is not None and callback(done, run.params, run.smoothing.info):
                reason = "callback"
            if done == num_updates:
                reason = "num_updates"
            if stopped or reason != "batches":
                break
    if block is None:
        raise ValueError(
            "batches gave no batch; pass an iterable of one at least, and a new one to "
            "every call: a generator is used up by the first."
        )
    if not stopped:
        # So that the value is that of the parameters that are returned.
        run = go_on(run, block, last - 1, False)
        stopped = int(run.watch.reason)
    reason = REASONS[stopped - 1] if stopped else reason
    return run.params, joined(parts), done, reason


def _without_aux(value_fn: LossFn) -> LossFn:
    return functools.wraps(value_fn)(
        lambda *args: check_loss(value_fn(*args), has_aux=True)[0]
    )


def _optimizer(optimizer: Any) -> optax.GradientTransformation:
    """The whole displacement, where nothing else is asked for."""
    if optimizer is None:
        return WHOLE_STEP
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"optimizer must be an optax transformation, got {optimizer!r}; "
            "pass for example optimizer=optax.adam(0.01)."
        )
    return optimizer
