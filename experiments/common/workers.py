"""Independent runs side by side, each in a process with a core of its own.

The operations of a sampler are too small to gain much by a second thread: two processes
with one core each do nearly twice the work of one process with both.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax

from experiments.common import hosts, interruption
from experiments.common.options import Options

Tick = Callable[[int], Any]
_progress: Any = None  # in a worker: the queue for its progress


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def count(options: Options) -> int:
    """One worker for each core; an accelerator is not shared."""
    # A run of seconds is shorter than the start of a process.
    alone = options.quick or jax.default_backend() != "cpu"
    return options.workers or (1 if alone else len(cores()))


def _start(free: Any, progress: Any, stop: Any) -> None:
    global _progress
    _progress = progress
    interruption.follow(stop)
    core = free.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker if its parent is killed, as it would keep its core busy."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments, _progress.put)


@functools.cache
def _pool(count: int) -> tuple[ProcessPoolExecutor, Any, Any]:
    # A fork would copy the locks of JAX's threads.
    context = multiprocessing.get_context("spawn")
    free, progress, stop = context.SimpleQueue(), context.SimpleQueue(), context.Event()
    for worker in range(count):
        free.put(cores()[worker % len(cores())])
    pool = ProcessPoolExecutor(count, context, _start, (free, progress, stop))
    return pool, progress, stop


def spread(
    function: Callable[..., Any],
    tasks: Mapping[str, tuple[Any, ...]],
    count: int,
    tick: Tick,
) -> Iterator[tuple[str, Any]]:
    """Calls `function(*arguments, tick)` for all tasks, in `count` processes.

    A single task, or a single worker, runs in this process, with all cores.

    Yields:
        The label of a task and its result, in the order in which they finish.
    """
    if min(count, len(tasks)) <= 1:
        for label, arguments in tasks.items():
            yield label, function(*arguments, tick)
            hosts.stop_if_requested()
        return
    pool, progress, stop = _pool(count)
    pending = {
        pool.submit(_call, function, arguments): label
        for label, arguments in tasks.items()
    }
    children = multiprocessing.active_children()
    interrupted: interruption.InterruptedRunError | None = None
    broken = False
    try:
        while pending:
            done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            if interruption.requested():
                stop.set()
                for future in [f for f in pending if f.cancel()]:
                    del pending[future]
            while not progress.empty():
                tick(progress.get())
            for future in done & pending.keys():
                label = pending.pop(future)
                try:
                    result = future.result()
                except interruption.InterruptedRunError as error:
                    interrupted = error  # another task may be about to finish
                except BrokenProcessPool:
                    broken = True
                else:
                    yield label, result
            # Both checks are needed: the pool does not notice the death of a process it
            # just started, and it notices closed files before a process is gone.
            if broken or not all(child.is_alive() for child in children):
                raise SystemExit(
                    "A worker process died, for want of memory perhaps: the same "
                    "command goes on from the last checkpoints, and needs less with "
                    "--workers 1."
                )
    except BaseException:  # for example a second Ctrl-C: do not wait
        _pool.cache_clear()
        for child in children:
            child.kill()
        raise
    if interrupted:
        raise interrupted
    hosts.stop_if_requested()
