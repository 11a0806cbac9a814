"""The outbox: a bounded queue and one thread that delivers calls to a service which may be slow, down or dead.

`put` returns at once and never raises. A call that fails goes to the end of the queue and is tried again after a pause;
the pause doubles after each failure, up to a limit. A call is given up, and counted, if the service refuses it or if it
keeps failing while other calls succeed. The outbox warns of the first failure at once, and of later ones at most every
`warn_every_s`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

CLOSING_PAUSE_S = 0.5
MAX_FAILURES_AT_CLOSE = 3  # in a row: the service counts as down, and closing stops waiting for it
MAX_STRIKES = 3  # failures of one call while others succeeded: the call is at fault, not the service


@dataclass
class _Call:
    """A call in the queue; the first three fields are the arguments of `put`."""

    what: str
    action: Callable[[], None]
    num_bytes: int
    strikes: int = 0  # failures while other calls succeeded
    delivered_before: int = -1  # successes of the outbox before this call's last failure


class Outbox:
    """Delivers calls to a service. A call may be delivered more than once, and later than calls put in after it."""

    def __init__(
        self,
        service: str,
        *,
        is_refusal: Callable[[Exception], bool] = lambda error: False,
        max_calls: int = 2000,
        max_bytes: int = 256 << 20,
        first_pause_s: float = 1.0,
        longest_pause_s: float = 60.0,
        warn_every_s: float = 600.0,
        logger: logging.Logger | None = None,
    ) -> None:
        """Start the thread.

        Args:
            service: Name of the service in messages.
            is_refusal: Whether an error would come again on every try; such a call is given up at once.
            max_calls: Most calls in the queue; the oldest are dropped beyond it.
            max_bytes: Most memory that the queued calls may hold; the oldest are dropped beyond it.
            first_pause_s: Pause after the first failure.
            longest_pause_s: Limit of the doubling pauses.
            warn_every_s: Shortest time between two warnings of failures.
            logger: Where warnings go; None is this module's logger.
        """
        self._service, self._is_refusal = service, is_refusal
        self._max_calls, self._max_bytes = max_calls, max_bytes
        self._first_pause_s, self._longest_pause_s, self._warn_every_s = first_pause_s, longest_pause_s, warn_every_s
        self._logger = logger or logging.getLogger(__name__)
        self._calls: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._in_flight = False
        self._deadline: float | None = None  # set by close()
        self._num_delivered = self._num_lost = 0
        self._num_failures_in_a_row = 0
        self._warned_of_failure = False
        self._last_warning_s = -float("inf")
        self._thread = threading.Thread(target=self._work, name=f"outbox-{service}", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Number of calls that are neither delivered nor given up."""
        with self._changed:
            return len(self._calls) + self._in_flight

    @property
    def num_lost(self) -> int:
        """Number of calls given up: refused, at fault, dropped from a full queue, or put in after `close`."""
        return self._num_lost

    def put(self, what: str, action: Callable[[], None], num_bytes: int = 0) -> None:
        """Queue a call and return at once.

        Args:
            what: Name of the call in messages.
            action: The call; an exception means that it was not delivered.
            num_bytes: Memory that the call holds while it waits.
        """
        with self._changed:
            if self._deadline is not None:
                self._num_lost += 1
                return
            self._calls.append(_Call(what, action, num_bytes))
            self._make_room()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the queue is empty; False if `timeout_s` passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._calls and not self._in_flight, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Deliver the rest within `timeout_s` and stop; returns whether every call since the start was delivered."""
        with self._changed:
            self._deadline = time.monotonic() + timeout_s
            self._num_failures_in_a_row = 0
            self._changed.notify_all()
        self._thread.join(timeout_s)
        lost = self.num_lost + self.num_waiting
        if lost:
            self._logger.warning("%s: %d calls were not delivered", self._service, lost)
        return lost == 0

    def _make_room(self) -> None:
        while len(self._calls) > self._max_calls or sum(call.num_bytes for call in self._calls) > self._max_bytes:
            self._calls.popleft()
            self._num_lost += 1

    def _work(self) -> None:
        while (call := self._next()) is not None:
            try:
                call.action()
            except Exception as error:
                self._failed(call, error)
                self._pause()
            else:
                self._succeeded()

    def _next(self) -> _Call | None:
        """The next call; None when the outbox is closed and empty or out of time."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._deadline is not None)
            if not self._calls or self._is_over():
                return None
            self._in_flight = True
            return self._calls.popleft()

    def _is_over(self) -> bool:
        if self._deadline is None:
            return False
        return time.monotonic() > self._deadline or self._num_failures_in_a_row >= MAX_FAILURES_AT_CLOSE

    def _pause(self) -> None:
        with self._changed:
            if self._deadline is None:
                doublings = min(self._num_failures_in_a_row, 30) - 1
                pause_s = min(self._first_pause_s * 2**doublings, self._longest_pause_s)
                self._changed.wait_for(lambda: self._deadline is not None, pause_s)
                return
        time.sleep(min(self._first_pause_s, CLOSING_PAUSE_S))

    def _succeeded(self) -> None:
        with self._changed:
            self._in_flight = False
            self._num_delivered += 1
            self._num_failures_in_a_row = 0
            self._changed.notify_all()
        if self._warned_of_failure:
            self._warned_of_failure = False
            self._logger.warning("%s answers again; %d calls are waiting", self._service, self.num_waiting)

    def _failed(self, call: _Call, error: Exception) -> None:
        if 0 <= call.delivered_before < self._num_delivered:
            call.strikes += 1
        call.delivered_before = self._num_delivered
        give_up = self._is_refusal(error) or call.strikes >= MAX_STRIKES
        with self._changed:
            self._in_flight = False
            self._num_failures_in_a_row += 1
            if give_up:
                self._num_lost += 1
            else:
                self._calls.append(call)
                self._make_room()
            self._changed.notify_all()
        self._warn(call, error, give_up)

    def _warn(self, call: _Call, error: Exception, give_up: bool) -> None:
        now = time.monotonic()
        if now - self._last_warning_s < self._warn_every_s:
            return
        self._last_warning_s = now
        self._warned_of_failure = not give_up
        problem = " ".join(str(error).partition("[SQL: ")[0].split())[:300] or type(error).__name__
        self._logger.warning(
            "%s: %s failed (%s); %s. %d calls are waiting, %d were given up. The work continues without it.",
            self._service,
            call.what,
            problem,
            "given up" if give_up else "it will be tried again",
            self.num_waiting,
            self._num_lost,
        )
