"""What Ray and Ray Train raise when a process, a node or memory is lost, as one line that says what to do.

* A process dies with its node, by a signal, or because Ray's memory monitor ends it (OutOfMemoryError, which is no
  RayActorError): `LOST`, `describe_loss`.
* An object finds no room: its node's object store is full, and so is the disk to which Ray spills. Below 5 % of free
  disk Ray waits two seconds and fails the task with OutOfDiskError; it does not try the task again: `fault_of`.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from boxsup_dist.distributed.ray_internals import unwrapped
from boxsup_dist.errors import InputError, LostWorkError, NoRoomError, StoreUnavailableError

LOST = (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError, OutOfMemoryError)
A_LOSS = "a process was lost: "  # begins the error of one; a training counts several
CONTINUE = "run the same command again: it continues"


def cause_of(error: BaseException) -> BaseException:
    """What went wrong, without the wrappers of Ray and Ray Train, whose text is a traceback."""
    error = unwrapped(error)
    return getattr(error, "cause", None) or error


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the others of Ray's errors are advice and tracebacks."""
    return (str(error).strip().splitlines() or [""])[0]


def lost_its_node(error: BaseException) -> bool:
    """Whether a process was lost because its node was, as far as Ray reports it, and so through no fault of its own."""
    return isinstance(error, (NodeDiedError, ObjectLostError)) or "its node has died" in str(error)


def describe_loss(error: BaseException, lower: str = "") -> str:
    """Why a process ended, in one line.

    Args:
        error: What Ray or the process raised.
        lower: Settings with smaller values of which a node needs less memory; named if memory is the cause.
    """
    cause = cause_of(error)
    text = str(cause)
    advice = f"; to need less memory, lower {lower}" if lower else ""
    if isinstance(cause, OutOfMemoryError):
        found = re.search(r"\(IP: ([^,)]+).*? was (\S+) (?:used )?/ (\S+)", text, re.DOTALL)
        node = f"node {found[1]} ran out of memory ({found[2]} of {found[3]} in use)" if found else first_line(cause)
        return f"{node}, so Ray ended the process{advice}"
    if _is_own_memory(cause):
        return f"out of memory ({type(cause).__name__}: {first_line(cause)}){advice}"
    if isinstance(cause, WorkerCrashedError) or "Worker exit type: SYSTEM_ERROR" in text:
        place = re.search(r"\bip: ([\w.:]+\w)", text)
        where = f" on node {place[1]}" if place else ""
        return f"native code crashed in it, or the system ended it for lack of memory (see `dmesg`{where}){advice}"
    if lost_its_node(cause):
        return "its node was lost"
    if isinstance(cause, ActorUnavailableError):
        return "its process does not answer: native code crashed in it, the system ended it, or its node is cut off"
    return f"{type(cause).__name__}: {first_line(cause)}"


def fault_of(error: BaseException) -> InputError | None:
    """The error to show for lost processes, memory, disk or store, in a training too; None for any other cause."""
    causes = [cause_of(each) for each in _parts(error)]
    away = next((cause for cause in causes if isinstance(cause, StoreUnavailableError)), None)
    if away is not None:
        return away
    if any(isinstance(cause, OutOfDiskError) for cause in causes):
        return NoRoomError(
            "Ray has no room for an object: the object store of a node is full, and so is the disk that it spills to",
            expected=f"5 % of that disk free (see df), or a larger object store (`ray memory` shows what fills it); "
            f"then {CONTINUE}",
        )
    lost = [cause for cause in causes if isinstance(cause, LOST) or _is_own_memory(cause)]
    if not lost:
        return None
    # Ray's own kill says the most; the other workers of a training only notice that one is gone.
    lost.sort(key=lambda cause: not (isinstance(cause, OutOfMemoryError) or _is_own_memory(cause)))
    return LostWorkError(f"{A_LOSS}{describe_loss(lost[0])}", expected=f"processes that live; {CONTINUE}")


def _is_own_memory(cause: BaseException) -> bool:
    """Whether a process met the end of its memory itself, on the GPU too. By name: torch is an import of seconds."""
    kind = type(cause)
    return isinstance(cause, MemoryError) or (kind.__module__, kind.__name__) == ("torch", "OutOfMemoryError")


def _parts(error: BaseException) -> list[BaseException]:
    train: Any = sys.modules.get("ray.train")  # not imported: what failed may be that import
    if train is not None and isinstance(error, train.WorkerGroupError):
        return list(error.worker_failures.values())
    if train is not None and isinstance(error, train.ControllerError):
        return [error.controller_failure]
    return [error]
