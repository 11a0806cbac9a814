"""Stages that run beside the training, one after another in one thread of rank 0."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Beside:
    """Runs stages in the order in which they are started; nobody waits for them until `wait`.

    The stages share the actor pool with the reassignment, and a pool does one `map` at a time. So call `wait` before
    anything else uses the pool.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        """With `at_once`, `start` itself runs the stage and returns when it is over."""
        self._executor = None if at_once else ThreadPoolExecutor(1, thread_name_prefix="stages")
        self._started: list[Future[None]] = []

    def start(self, stage: Callable[[], None]) -> None:
        """Run a stage after those that were started before."""
        if self._executor is None:
            stage()
        else:
            self._started.append(self._executor.submit(stage))

    def check(self) -> None:
        """Raise what a stage raised that has ended, without waiting for the others."""
        for future in self._started:
            if future.done():
                future.result()

    def wait(self) -> None:
        """Wait until every stage is over, and raise what the first one that failed raised."""
        started, self._started = self._started, []
        for future in started:
            future.result()

    def close(self) -> None:
        """Forget the stages that have not begun. One that runs ends when its pool does."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
