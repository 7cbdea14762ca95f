"""A whole run in one call: the compiled loop, its stopping rules, its advice."""

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
from lejax._internal.text import estimate_text
from lejax._internal.types import LossFn, PyTree, ScalarOrSchedule
from lejax._run.advice import advice
from lejax._run.batches import Block, make_blocks, signature
from lejax._run.history import History, joined, known_mean, signal_of
from lejax._run.interruption import interruptible
from lejax._run.loop import Loop, MinimizeState, Run, finished, make_program, start
from lejax._run.progress import check_progress, progress_bar
from lejax._run.result import MinimizeResult, outcome
from lejax._run.stopping import REASONS, make_rules
from lejax._samplers.gradient import check_sampler
from lejax._samplers.importance import importance
from lejax._samplers.sampler import Sampler, check_smoothing
from lejax._schedules.target_share import ShareController, first_tau
from lejax._tracing.comparison import same_optimizer
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
    state: MinimizeState | None = None,
) -> MinimizeResult:
    """Minimise a smoothed loss: a whole run, compiled, in one call.

    Use it in place of `scipy.optimize.minimize` for objectives that are noisy, flat,
    discontinuous or full of small minima. For masks, `gaussian` or other work in the
    loop, write it yourself over
    `optax.chain(lejax.local_entropy(sampler, tau, key=key, beta=beta), optimizer)`; the
    updates are the same. If the loss is smooth and its gradient is cheap, a plain
    optimizer is faster.

        x_{k+1} = x_k + optimizer(∇F_{τ,β}(x_k)),   by default = x_k - βτ ∇F_{τ,β}(x_k),

    with F the local entropy, or F^H for a sampler of `heat`. Updates run in blocks
    inside a compiled loop. Between blocks the host calls back, shows progress, reads
    batches, and ends the run after Ctrl-C. Stopping rules are checked in every update,
    so the size of a block does not change the result. If settings seem wrong, a warning
    at the end names the one to change.

    Args:
        value_fn: the loss f: `value_fn(params, batch)`, or `value_fn(params)` if no
            batch is passed.
        params: x_0, any tree of floating arrays.
        tau: τ, the variance of the smoothing, in squared units of the parameters: a
            positive number, a schedule of the number of updates so far, or a controller
            made by `target_share`.
        key: a typed key, `jax.random.key(seed)`.
        batch: one batch for all updates; it may contain more than arrays.
        batches: instead, an iterable with a batch for each update, of arrays and
            numbers; the run ends with it. `itertools.cycle` repeats it. It is read a
            block ahead. Each new shape of a batch compiles the loop again.
        sampler: any sampler, by default `importance(1000)`. A sampler of heat minimises
            F^H.
        beta: β > 0, the inverse temperature, as in `local_entropy`; 1 for heat.
        optimizer: the optax transformation that turns smoothed gradients into updates.
            By default an update is the paper's, the whole displacement.
        num_updates: the most updates.
        target_value: stop at the first parameters whose estimated objective, plus its
            standard error if known, is at most this.
        patience: stop after this many estimates in a row, 2 at least, in which the mean
            of the last `patience` objectives did not fall below the best such mean by
            more than its standard error. That error comes from their scatter.
        callback: `callback(step, params, info)`, called after every block with the
            number of updates so far, the parameters, and the `Info` of the last update.
            The run stops if it returns something true.
        progress: True for a progress bar by tqdm, False for none; by default one is
            shown in terminals and notebooks if tqdm is installed.
        block_size: the most updates between two callbacks; by default a hundredth of
            `num_updates`, and at most 100. Large batches make it smaller.
        has_aux: whether `value_fn` returns a pair (f, aux); the aux is discarded.
        state: `result.state` of a run that is to continue, with its `result.params` as
            `params`. Draws, schedules, optimizer and patience go on where they were,
            and the key is the earlier one. `batches` must begin with the first batch
            that was not used.

    Returns:
        A `MinimizeResult`. A run also ends after ten updates in a row without any
        effective sample, and, in the main thread, after Ctrl-C.

    Raises:
        ValueError: a number, `progress` or `state` is not valid; both `batch` and
            `batches` are passed, or `batches` is empty; `target_value` or `patience`
            is used with `sgld`, which does not estimate the objective; and the errors
            of `local_entropy` and `heat`.
        TypeError: an argument has the wrong type, or is traced.
        ImportError: `progress=True` without tqdm.

    Examples:
        An error rate has no useful gradient; its local entropy has one:

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
        # A callback may keep its arguments.
        donate=callback is None,
    )
    run, history, done, reason = _run(
        loop,
        _without_aux(value_fn) if has_aux else value_fn,
        start(loop, key, params, state),
        make_blocks(batch, batches, num_updates, size),
        batch,
        (*numbers, rules.target_value),
        num_updates,
        callback,
        progress,
    )
    for sentence in advice(history, sampler, whole_step=optimizer is None):
        warnings.warn(sentence, stacklevel=2)
    success, message = outcome(reason, done, rules)
    if reason == "interrupted":
        warnings.warn(message, stacklevel=2)
    return MinimizeResult(
        params=run.params,
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
        success=success,
        message=message,
        state=finished(run.state),
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
) -> tuple[Run, History, int, str]:
    """The last run, the history, the number of updates, and the reason of the end."""
    parts: list[History] = []
    programs: dict[Any, Callable[..., tuple[Run, History]]] = {}
    done, last, stopped, go_on, block, reason = 0, 0, 0, None, None, "batches"

    def program(run: Run, block: Block) -> tuple[Callable[..., Any], Run]:
        one = jax.tree.map(lambda leaf: leaf[0], block.batches)
        shapes = signature(one)
        if shapes not in programs:
            if len(programs) == 1:
                warnings.warn(
                    f"batches have other shapes than before, {shapes[1]}: updates are "
                    "compiled again for each; drop or fill up the last of an epoch if "
                    "that takes too long.",
                    stacklevel=4,
                )
            began = time.perf_counter()
            programs[shapes] = make_program(
                loop,
                value_fn,
                run.params,
                batch if block.batches is None else one,
                any_batch=block.batches is not None,
            )
            # No updates: this compiles, and does nothing else.
            run, _ = programs[shapes](run, block.batches, 0, 0, False, numbers)
            bar.compiled(time.perf_counter() - began)
        return programs[shapes], run

    with progress_bar(progress, num_updates) as bar, interruptible() as interrupted:
        for block in blocks:
            last = min(block.size, num_updates - done)
            go_on, run = program(run, block)
            run, part = go_on(run, block.batches, 0, last, True, numbers)
            parts.append(part)
            stopped = int(run.state.watch.reason)
            done += part.objective.size - bool(stopped)
            bar.done(done, estimate_text(part.objective[-1], part.standard_error[-1]))
            info = run.state.smoothing.info
            if callback is not None and callback(done, run.params, info):
                reason = "callback"
            if interrupted():
                reason = "interrupted"
            if done == num_updates:
                reason = "num_updates"
            if stopped or reason != "batches":
                break
        if go_on is None or block is None:
            raise ValueError(
                "batches gave no batch; pass an iterable of one at least, and a new "
                "one to every call: a generator is used up by the first."
            )
        if not stopped:
            # The value of the parameters that are returned.
            run, part = go_on(run, block.batches, last - 1, last, False, numbers)
            parts.append(part)
            stopped = int(run.state.watch.reason)
    reason = REASONS[stopped - 1] if stopped else reason
    return run, joined(parts), done, reason


def _without_aux(value_fn: LossFn) -> LossFn:
    return functools.wraps(value_fn)(
        lambda *args: check_loss(value_fn(*args), has_aux=True)[0]
    )


def _optimizer(optimizer: Any) -> optax.GradientTransformation:
    """The optimizer; by default the whole displacement."""
    if optimizer is None:
        return WHOLE_STEP
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"optimizer must be an optax transformation, got {optimizer!r}; "
            "pass for example optimizer=optax.adam(0.01)."
        )
    return optimizer
