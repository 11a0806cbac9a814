"""Which units of work go out next, and how many together: chunks of consecutive units that shrink towards the end.

One unit at a time would cost the dispatching process a message and an answer for each, which hundreds of workers turn
into a queue at that process. Guided self-scheduling (Polychronopoulos and Kuck, 1987): each chunk takes a fixed share
of what is left, so that all workers end together. Pure: nothing here knows Ray.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

CHUNK_S = 1.0  # a chunk takes about this long at most: progress is seen, and little is lost with a worker
_NUM_TIMES = 31  # latest chunks whose median says how long a unit takes


class Backlog:
    """The units that wait, by number; lost ones are run again, alone, before all others."""

    def __init__(self, num_units: int) -> None:
        self.num_waiting = num_units
        self._next = 0  # this one and all after it have never gone out
        self._again: list[int] = []  # the lowest last
        self._suspects: set[int] = set()
        self._unit_s: deque[float] = deque(maxlen=_NUM_TIMES)

    @property
    def first(self) -> int:
        """The unit that goes out next."""
        return self._again[-1] if self._again else self._next

    @property
    def is_suspect(self) -> bool:
        """Whether the process of the next unit was lost before, so that no other unit may share one with it."""
        return self.first in self._suspects

    @property
    def knows_time(self) -> bool:
        """Whether a chunk has come back, so that the time of a unit is known."""
        return bool(self._unit_s)

    def chunk_size(self, num_sharing: int) -> int:
        """How many consecutive units should go out together: a worker's share of all that wait, CHUNK_S at most.

        Args:
            num_sharing: Number of workers.
        """
        if self._again or not self._unit_s:
            return 1
        fair = -(-self.num_waiting // num_sharing)
        unit_s = statistics.median(self._unit_s)
        return fair if fair * unit_s <= CHUNK_S else max(int(CHUNK_S / unit_s), 1)

    def take(self, count: int) -> range:
        """Remove the next units, at most `count`; a unit that is run again comes alone."""
        if self._again:
            taken = range(self._again[-1], self._again.pop() + 1)
        else:
            taken = range(self._next, min(self._next + count, self._next + self.num_waiting))
            self._next = taken.stop
        self.num_waiting -= len(taken)
        return taken

    def give_back(self, units: Sequence[int], *, suspect: bool) -> None:
        """Put units back that were lost; each goes out alone. `suspect`: one of them may have ended its process."""
        self._again = sorted({*self._again, *units}, reverse=True)
        self.num_waiting += len(units)
        if suspect:
            self._suspects.update(units)

    def note(self, num_units: int, seconds: float) -> None:
        """Note how long a chunk took, its wait in a worker's queue included."""
        self._unit_s.append(seconds / num_units)
