"""The message for a Ray object that finds no room.

An object is stored in the object store of a node. When the store is full, Ray spills objects to a disk. When less than
5 % of that disk is free, Ray waits two seconds and fails the task with OutOfDiskError. Neither Ray nor Ray Data tries
the task again, although the disk may have room a minute later: the caller has to start again.
"""

from __future__ import annotations

import sys
from typing import Any

from ray.exceptions import OutOfDiskError

from boxsup_dist.distributed.ray_internals import unwrapped
from boxsup_dist.errors import NoRoomError


def cause_of(error: BaseException) -> BaseException:
    """What went wrong, without the wrappers of Ray and Ray Train, whose text is a traceback."""
    error = unwrapped(error)
    return getattr(error, "cause", None) or error


def no_room(error: BaseException) -> NoRoomError | None:
    """The error to show if an object found no room, in a training too; None for any other cause."""
    causes = [error]
    # Not imported here: what failed may be the import of ray.train itself.
    train: Any = sys.modules.get("ray.train")
    if train is not None and isinstance(error, train.WorkerGroupError):
        causes = list(error.worker_failures.values())
    elif train is not None and isinstance(error, train.ControllerError):
        causes = [error.controller_failure]
    if not any(isinstance(cause_of(each), OutOfDiskError) for each in causes):
        return None
    return NoRoomError(
        "Ray has no room for an object: the object store of a node is full, and so is the disk that it spills to",
        expected="5 % of that disk free (see df), or a larger object store (`ray memory` shows what fills it); "
        "then run the same command again: it continues",
    )
