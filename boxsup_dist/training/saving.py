"""Checkpoints in the background: the training is held while its state is copied, then a thread writes the copy.

One save at a time: the next waits for the last, so checkpoints become whole in the order of the steps. What goes wrong
in the thread is raised in the next call here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from boxsup_dist.model import checkpoint
from boxsup_dist.model.checkpoint import CheckpointState


class Saver:
    """Writes the checkpoints of one run; rank 0 has it.

    Args:
        run_dir: Run directory.
        keep_last: How many of the newest whole checkpoints to keep.
        check_writer: Called in the thread before each write: raises if another process writes this run now.
        epochs_to_keep: Called in the thread before each write: epochs, from 1, whose last checkpoint is kept too.
    """

    def __init__(
        self,
        run_dir: str,
        keep_last: int,
        check_writer: Callable[[], None],
        epochs_to_keep: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._run_dir, self._keep_last = run_dir, keep_last
        self._check_writer, self._epochs_to_keep = check_writer, epochs_to_keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None
        self._copy: dict[str, Any] | None = None

    def save(self, state: CheckpointState) -> None:
        """Copy a state, whose tensors may be on any device and may change afterwards, and begin to write the copy.

        Raises:
            InputError: The save before failed.
        """
        self.finish()
        parts = {"model": dict(state.model), "training": dict(state.training)}
        self._copy = checkpoint.copy_of(parts, self._copy)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # the copy is complete
        self._running = self._thread.submit(self._write, replace(state, **self._copy))

    def _write(self, state: CheckpointState) -> None:
        self._check_writer()
        kept = self._epochs_to_keep()
        checkpoint.save(self._run_dir, state, keep_last=self._keep_last, keep_epochs=kept)

    def check(self) -> None:
        """Raise what the newest save raised, if it has ended; never waits."""
        if self._running is not None and self._running.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the newest save is complete; raise what it raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait for the thread, whatever becomes of its save."""
        self._thread.shutdown()
