"""Checkpoints of an unfinished run: by orbax, atomic, with the last few kept.

A checkpoint holds everything that the rest of the run depends on. A run that was killed
and started again therefore ends as an undisturbed one, bit for bit on the same devices.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN
from orbax.checkpoint.options import MultiprocessingOptions

from experiments.common import hosts, results

KEPT = 3


def description(**settings: Any) -> dict[str, Any]:
    """The settings that a run must share with a checkpoint to go on from it."""
    layout = {"devices": jax.device_count(), "processes": jax.process_count()}
    device = {"device": results.device_name(), "layout": layout}
    return json.loads(
        json.dumps(settings | {"versions": results.versions()} | device, default=str)
    )


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, root: Path, every: float, resume: bool, **settings: Any) -> None:
        """Finds the checkpoints of the run with these settings.

        Args:
            root: a folder for all runs, which every process must be able to read.
            every: the least number of seconds between two checkpoints.
            resume: if True, go on from an existing checkpoint; else remove it.
            settings: all settings of the run.
        """
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every step
        text = json.dumps(settings, sort_keys=True, default=str)
        self.folder = root.absolute() / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.every = every
        self.about = description(**settings)
        self.saved_at = time.monotonic()
        if not resume and jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._manager: ocp.CheckpointManager | None = None

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self.saved_at >= self.every

    def load(self, like: Any) -> tuple[Any, Any] | None:
        """The state and the record of the last checkpoint that can be read.

        Args:
            like: a state of the same shapes, dtypes and placement.

        Raises:
            SystemExit: the checkpoint is from another run, version or layout.
        """
        # All processes must go on from the same checkpoint: the first one chooses it.
        if not hosts.of_first(self.folder.exists()):
            return None
        numbers = hosts.whole(like)
        for step in hosts.of_first(sorted(self._open().all_steps(), reverse=True)):
            found = self._read(step, numbers)
            # If one process cannot read a checkpoint, none goes on from it.
            unread = hosts.any_of(found is None)[0]
            if found is not None and not unread:
                print(f"{self.folder.name}: goes on from block {step}.", flush=True)
                state, record = found
                return hosts.placed(state, like), record
            print(
                f"checkpoint {self.folder / str(step)} cannot be read: the one before "
                "is used, if any."
            )
            if jax.process_index() == 0:
                self._open().delete(step)
        return None

    def save(self, step: int, state: Any, record: Any) -> bool:
        """Saves a state; returns whether that succeeded, as the run goes on without."""
        numbers = hosts.whole(state)
        done = True
        # In one process only: if one of several failed, the others would wait for it.
        if jax.process_index() == 0:
            about = {"about": self.about, "record": record}
            try:
                done = self._open().save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(numbers),
                        record=ocp.args.JsonSave(about),
                    ),
                )
            except Exception as error:  # a full disk raises several kinds of errors
                done = False
                # The manager may be in a wrong state: a new one reads the files.
                self._manager = None
                print(
                    f"could not save a checkpoint in {self.folder} ({error}): the run "
                    "goes on, and the last good one is kept. Free some space there."
                )
        self.saved_at = time.monotonic()
        return hosts.of_first(done)

    def remove(self) -> None:
        """Removes the checkpoints of a finished run."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None
        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            mine = jax.process_index()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=LatestN(KEPT),
                    cleanup_tmp_directories=mine == 0,
                    enable_async_checkpointing=False,
                    create=False,
                    multiprocessing_options=MultiprocessingOptions(
                        primary_host=mine,
                        active_processes={mine},
                        barrier_sync_key_prefix=f"process_{mine}",
                    ),
                ),
            )
        return self._manager

    def _read(self, step: int, numbers: Any) -> tuple[Any, Any] | None:
        def restore(**items: Any) -> Any:
            return self._open().restore(step, args=ocp.args.Composite(**items))

        try:
            record = restore(record=ocp.args.JsonRestore()).record
            self._check(record["about"])
            state = restore(state=ocp.args.StandardRestore(numbers)).state
            return state, record["record"]
        except Exception as error:  # a broken file raises errors of many kinds
            print(f"{self.folder / str(step)}: {type(error).__name__}")
            return None

    def _check(self, about: dict[str, Any]) -> None:
        for name in sorted(about.keys() | self.about.keys()):
            theirs, mine = about.get(name), self.about.get(name)
            if theirs != mine:
                raise SystemExit(
                    f"--resume: the checkpoint in {self.folder} is of {name} {theirs}, "
                    f"this run is of {mine}, so it would not end in the same numbers; "
                    "run it as it was begun, or begin it anew with --no-resume."
                )
