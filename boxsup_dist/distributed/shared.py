"""What all tasks of a stage need, unpacked once a process instead of once a task.

It may grow with the data set (a list of its units, say), and so does the number of tasks: handed to every task, it
would cost the square.
"""

from __future__ import annotations

from typing import Any

import ray

_KEPT = 2  # stages whose tasks take turns in a process
_unpacked: dict[ray.ObjectRef, Any] = {}


def fetch(holder: list[ray.ObjectRef]) -> Any:
    """The object of the one reference in the list: a bare one Ray would unpack itself. Callers must not change it."""
    (reference,) = holder
    if reference not in _unpacked:
        while len(_unpacked) >= _KEPT:
            del _unpacked[next(iter(_unpacked))]
        _unpacked[reference] = ray.get(reference)
    return _unpacked[reference]
