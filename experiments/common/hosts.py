"""Runs one experiment by several processes, on one host or many.

All processes run the same program on the same data. They share the draws
(`lejax.parallel`). The first one writes the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments.common import interruption
from experiments.common.options import Options

# If a process sends no heartbeat for this long, it counts as dead and the others stop.
HEARTBEAT_SECONDS = 20


@contextlib.contextmanager
def together(options: Options) -> Iterator[Options]:
    """Joins the other processes, if the options name a coordinator.

    Yields:
        The options for this process. All processes except the first print nothing and
        write to a temporary folder.
    """
    if options.coordinator is None:
        yield options
        return
    jax.distributed.initialize(
        options.coordinator,
        options.processes,
        options.rank,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )
    shared = options.checkpoints or options.output / "checkpoints"
    options = dataclasses.replace(options, checkpoints=shared, workers=1)
    with contextlib.ExitStack() as stack:
        if jax.process_index() > 0:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            options = dataclasses.replace(options, output=Path(folder))
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        try:
            yield options
        except jax.errors.JaxRuntimeError as error:
            print(
                f"process {jax.process_index()} of {jax.process_count()} stops: "
                f"{str(error).splitlines()[0]}\nIf another one does not answer, start "
                "all of them again: the run goes on from its last checkpoint.",
                file=sys.__stderr__,
                flush=True,
            )
            sys.stdout.flush()
            stack.close()
            # A regular shutdown would wait for the process that is gone.
            os._exit(1)
    jax.distributed.shutdown()


def of_first(value: Any) -> Any:
    """The value that the first process passes, in all processes; any JSON value."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(text))))
    mine = text if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes())


def any_of(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process."""
    if jax.process_count() == 1:
        return list(flags)
    return multihost_utils.process_allgather(np.asarray(flags)).any(0).tolist()


def stop_if_requested() -> None:
    """Stops all processes if one received a signal; for work without blocks."""
    if any(any_of(interruption.requested())):
        raise interruption.InterruptedRunError(
            "Stopped. The same command goes on from here."
        )


def whole(tree: Any) -> Any:
    """Every array as a NumPy array in each process; keys as their raw data."""
    numbers = jax.tree.map(_numbers, tree)
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(numbers, tiled=True)
    return jax.tree.map(np.asarray, numbers)


def placed(numbers: Any, like: Any) -> Any:
    """The inverse of `whole`: arrays on the devices and of the types of `like`."""

    def leaf(array: np.ndarray, like: jax.Array) -> jax.Array:
        # Not by `device_put`, which checks that processes agree and fails for NaN.
        there = jax.make_array_from_callback(
            array.shape, _numbers(like).sharding, array.__getitem__
        )
        if _is_key(like):
            return jax.random.wrap_key_data(there, impl=jax.random.key_impl(like))
        return there

    return jax.tree.map(leaf, numbers, like)


def _numbers(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
