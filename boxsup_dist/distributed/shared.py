"""Values that all tasks of a stage need: stored once, unpacked once per process instead of once per task.

Such a value may grow with the data set (the list of its units, for example), and the number of tasks grows too: sent
with every task it would cost the square of the data set.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import ray

from boxsup_dist.distributed import notices

Reference: TypeAlias = "ray.ObjectRef[Any]"

_KEPT = 4  # two stages whose tasks take turns in a process; the stream has two values, mixture and labels
_unpacked: dict[Reference, Any] = {}


def fetch(holder: list[Reference]) -> Any:
    """The value of the one reference in the list; callers must not change the value.

    The list keeps Ray from unpacking the reference itself, once per task.
    """
    notices.forward()
    (reference,) = holder
    if reference not in _unpacked:
        while len(_unpacked) >= _KEPT:
            del _unpacked[next(iter(_unpacked))]
        _unpacked[reference] = ray.get(reference)
    return _unpacked[reference]
