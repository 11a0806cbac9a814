"""What a process says while it waits for a store: one line after five seconds, then ever fewer, and one at the end.

Many threads and processes wait at once for the same store. `Printer` prints one line for all of them. In a process
whose stderr nobody sees, `announce_with` sends the notices elsewhere (`boxsup_dist/distributed/notices.py`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_LINE_S = 5.0  # of waiting; the time to the next line doubles
LONGEST_INTERVAL_S = 60.0


@dataclass(frozen=True)
class Notice:
    """A store is away, or answers again."""

    store: str  # scheme and bucket
    text: str
    over: bool = False


class Printer:
    """Prints notices on stderr: for each store at growing intervals, and once when it answers again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._next: dict[str, tuple[float, float]] = {}  # store that is away -> time of the next line, interval

    def __call__(self, notice: Notice) -> None:
        """Print the notice unless it is too early for another line."""
        with self._lock:
            now, away = self._clock(), self._next.get(notice.store)
            if notice.over:
                if self._next.pop(notice.store, None) is None:
                    return
            elif away is not None and now < away[0]:
                return
            else:
                interval = FIRST_LINE_S if away is None else min(2 * away[1], LONGEST_INTERVAL_S)
                self._next[notice.store] = (now + interval, interval)
        print(notice.text if notice.over else f"warning: {notice.text}", file=sys.stderr, flush=True)


_receive: Callable[[Notice], None] | None = None


def announce(notice: Notice) -> None:
    """Give a notice to whoever shows it in this process: stderr, unless `announce_with` named another."""
    global _receive
    if _receive is None:
        _receive = Printer()
    _receive(notice)


def announce_with(receive: Callable[[Notice], None]) -> None:
    """Give the coming notices of this process to `receive`."""
    global _receive
    _receive = receive
