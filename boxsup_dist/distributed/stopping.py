"""How a running training is asked to save a checkpoint and end.

The driver asks at SIGTERM, Ray Train's controller before it starts another number of workers. They are processes of
their own, and so is rank 0, which answers: the request is a small value on the cluster's head. No actor is needed.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from boxsup_dist.distributed import ray_internals

POLL_EVERY_S = 1.0  # one request to the head each time
Cause = Literal["terminated", "resized", "preempted"]


class StopRequest:
    """A request to one training; can be pickled to any process of the session."""

    def __init__(self) -> None:
        self._key = f"boxsup-stop/{uuid.uuid4().hex}"

    def ask(self, cause: Cause) -> None:
        """Ask the training to save and end."""
        with suppress(Exception):  # the head is away: who asks waits for a while and goes on
            ray_internals.put_value(f"{self._key}/ask/{cause}", "")

    def cause(self) -> Cause | None:
        """Why the training is asked to end; None if it is not."""
        asked = ray_internals.values_below(f"{self._key}/ask/")
        causes: tuple[Cause, ...] = ("terminated", "resized")  # an end for good comes before a restart
        return next((cause for cause in causes if f"{self._key}/ask/{cause}" in asked), None)

    def confirm(self) -> None:
        """Rank 0: the training has ended, and its checkpoint is whole."""
        with suppress(Exception):  # as above
            ray_internals.put_value(f"{self._key}/stopped", "")

    def ask_and_wait(self, cause: Cause, patience_s: float) -> None:
        """Ask, return when the training has stopped or after `patience_s`, and forget the request; raises nothing."""
        deadline = time.monotonic() + patience_s
        self.withdraw("stopped")  # said by the workers before these
        self.ask(cause)
        with suppress(Exception):
            while time.monotonic() < deadline and not ray_internals.values_below(f"{self._key}/stopped"):
                time.sleep(0.1)
        self.withdraw(f"ask/{cause}")

    def withdraw(self, part: str = "") -> None:
        """Forget the request, or a part of it."""
        with suppress(Exception):
            ray_internals.remove_values(f"{self._key}/{part}")


class StopListener:
    """Rank 0's end: a thread that looks for the request; `cause` is its newest answer."""

    def __init__(self, look: Callable[[], Cause | None]) -> None:
        self.cause: Cause | None = None
        self._look = look
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop-request", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.is_set():
            with suppress(Exception):  # the head is away, or the session ends
                self.cause = self._look()
            self._closing.wait(POLL_EVERY_S)

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
