"""What the package uses of Ray beyond its documented API, in one place: read this file first when Ray is upgraded.

Written for Ray 2.60. `tests/unit/test_architecture.py` refuses such imports elsewhere.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from boxsup_dist import surroundings
from boxsup_dist.errors import SettingError

# What Ray appends to its folder for the path of a socket, with a process id of seven digits.
SOCKET = "ray/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"
MAX_SOCKET_BYTES = 107  # of an AF_UNIX path on Linux
STEP_S = 0.02  # a finished task waits at most this long for Ray Data to notice it


class UnhurriedSteps(ExecutionCallback):
    """Limits the scheduling loop of a dataset to one step per STEP_S.

    Ray 2.60's loop waits only while tasks run. When the training is slower than its stream, no task may start, and the
    loop spins in a thread beside the training: it took a third of a train worker's core. Ray has no setting for this.
    """

    def __init__(self) -> None:
        self.ended = 0.0

    def on_execution_step(self, executor: object) -> None:
        """Called by Ray after each step: sleep for the rest of STEP_S."""
        time.sleep(max(0.0, self.ended + STEP_S - time.monotonic()))
        self.ended = time.monotonic()


def hold_back(context: DataContext) -> None:
    """Limit the scheduling loops of the datasets made with this context, see `UnhurriedSteps`."""
    context.custom_execution_callback_classes = [UnhurriedSteps]


def silence_notices() -> None:
    """Silence two loggers that warn of their own defaults in every session; there is no setting for them."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # warns that authentication is off
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that progress bars are off


def short_folder() -> str | None:
    """Where Ray puts its sockets when the path of its own choice is too long for them, as in many batch systems.

    Returns:
        A folder, or None if RAY_TMPDIR or TMPDIR, which Ray chooses, is short enough.

    Raises:
        SettingError: It is too long, and nothing can be written to /tmp.
    """
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(os.path.join(os.path.abspath(chosen), SOCKET))) <= MAX_SOCKET_BYTES:
        return None
    try:
        return os.path.join(surroundings.private_folder("boxsup", "/tmp"), "ray")
    except OSError as error:
        raise SettingError(
            f"the folder is too long for the paths of Ray's sockets, and /tmp is of no help: {error.strerror}",
            field="TMPDIR",
            value=chosen,
            expected=f"RAY_TMPDIR=FOLDER, of at most {MAX_SOCKET_BYTES - len(SOCKET) - 1} bytes",
        ) from None


def unwrapped(error: BaseException) -> BaseException:
    """The error inside Ray Train's private UserExceptionWithTraceback (its text is a traceback); others unchanged."""
    inner = getattr(error, "_base_exc", error)
    assert isinstance(inner, BaseException)
    return inner


def raylet_pid(node: Any) -> int:
    """Process id of the raylet of a node of `ray.cluster_utils.Cluster`, which drills kill."""
    return int(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
