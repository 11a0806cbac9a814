"""What happens inside a run, told to the driver: progress, metrics, artifacts.

Rank 0 posts events to a small actor on the driver's node and never waits; a thread of the driver fetches and handles
them. So a person reads plain lines, and the tracking store is written from one place that outlives the workers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_EVERY_S = 0.5
STALL_AFTER_S = 60.0  # without an event; then it is told, and again after twice as long


@dataclass(frozen=True)
class Stalled:
    """The event that the driver makes itself when none has come for this long."""

    seconds: float


@ray.remote(num_cpus=0)
class _Mailbox:
    def __init__(self) -> None:
        self.events: list[object] = []

    def post(self, event: object) -> None:
        self.events.append(event)

    def drain(self) -> list[object]:
        events, self.events = self.events, []
        return events


class EventPost:
    """The sender's end; may be pickled to any process of the session."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def __call__(self, event: object) -> None:
        """Post an event without waiting."""
        self._mailbox.post.remote(event)

    def wait(self, event: object) -> None:
        """Post an event and return when it lies in the mailbox: for a sender that is about to end."""
        ray.get(self._mailbox.post.remote(event))


class EventLoop:
    """The driver's end: a context manager whose thread gives every event to `handle`, in order.

    An event is any value that can be pickled. Where none comes for `stall_after_s` the loop makes a Stalled. What
    `handle` raises ends the thread and is raised again when the loop is left.
    """

    def __init__(self, handle: Callable[[object], None], stall_after_s: float = STALL_AFTER_S) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox: Any = _Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self._handle, self._stall_after_s = handle, stall_after_s
        self._closing = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="run-events", daemon=True)
        self.post = EventPost(self._mailbox)

    def _run(self) -> None:
        heard, patience = time.monotonic(), self._stall_after_s
        while True:
            last = self._closing.wait(POLL_EVERY_S)
            try:
                events = ray.get(self._mailbox.drain.remote())
                silent_s = time.monotonic() - heard
                if events:
                    heard, patience = time.monotonic(), self._stall_after_s
                elif silent_s > patience:
                    events, patience = [Stalled(silent_s)], 2 * patience
                for event in events:
                    self._handle(event)
            except Exception as error:
                self._error = error
                return
            if last:
                return

    def __enter__(self) -> EventLoop:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closing.set()
        self._thread.join(timeout=60)
        ray.kill(self._mailbox)
        if self._error is not None and kind is None:
            raise self._error
