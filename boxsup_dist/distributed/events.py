"""Events: what rank 0 of a training reports to the driver while the training runs.

Rank 0 posts events to a small actor on the driver's node without waiting; a thread of the driver fetches and handles
them. So the console prints whole lines, and one process that outlives the workers writes to the tracking store.
The events of a run are in `boxsup_dist/runs/events.py`.
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
STALL_AFTER_S = 60.0  # without an event, until the driver handles a Stalled; doubles from one to the next


class Event:
    """One report; its subclasses are frozen dataclasses."""


@dataclass(frozen=True)
class Stalled(Event):
    """No event came for so long."""

    seconds: float


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)  # Ray ends it, too, where memory is short
class _Mailbox:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def post(self, event: Event) -> None:
        self.events.append(event)

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events


class EventPost:
    """The sender's end; can be pickled to any process of the session."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def __call__(self, event: Event) -> None:
        """Post an event without waiting."""
        self._mailbox.post.remote(event)

    def wait(self, event: Event) -> None:
        """Post an event and return when it is in the mailbox: for a sender that is about to end."""
        ray.get(self._mailbox.post.remote(event))


class EventLoop:
    """The driver's end: a context manager whose thread gives every event to `handle`, in order.

    When no event comes for `stall_after_s`, `handle` gets a Stalled. What `handle` raises ends the thread and is raised
    again when the block ends.
    """

    def __init__(self, handle: Callable[[Event], None], stall_after_s: float = STALL_AFTER_S) -> None:
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
