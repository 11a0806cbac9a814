"""What to say where Ray has no room for an object.

An object goes into the object store of a node; where that is full, objects are spilled to a disk. Where the disk has
less than 5 % left too, Ray waits two seconds and then fails the task with OutOfDiskError. It does not try the task
again, and neither does Ray Data, though the disk may have room a minute later: who wants that begins again.
"""

from __future__ import annotations

from ray.exceptions import OutOfDiskError
from ray.train import ControllerError, WorkerGroupError

from boxsup_dist.errors import NoRoomError


def cause_of(error: BaseException) -> BaseException:
    """What went wrong, without the wrappers of Ray and Ray Train, whose text is a traceback."""
    error = getattr(error, "_base_exc", error)
    return getattr(error, "cause", None) or error


def no_room(error: BaseException) -> NoRoomError | None:
    """The error to show where the lack of room is the cause, of a training too; else None."""
    causes = [error]
    if isinstance(error, WorkerGroupError):
        causes = list(error.worker_failures.values())
    elif isinstance(error, ControllerError):
        causes = [error.controller_failure]
    if not any(isinstance(cause_of(each), OutOfDiskError) for each in causes):
        return None
    return NoRoomError(
        "Ray has no room for an object: a node's object store is full, and so is the disk that it spills to",
        expected="5 % of that disk free (see df) or a larger object store (`ray memory` tells what fills it); "
        "the same command then goes on",
    )
