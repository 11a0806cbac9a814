"""What the package uses of Ray beyond its documented API, in one place: read this file first when Ray is upgraded.

Written for Ray 2.60. `tests/unit/test_architecture.py` refuses such imports elsewhere.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray._private.ray_logging import stdout_deduplicator

# A message of 900 characters for each, printed in spite of log_to_driver=False. RAY_DEDUP_LOGS_SKIP_REGEX is its
# setting, but is read when Ray is imported.
_LOST_PROCESS = re.compile(
    "A worker died or was killed while executing a task|due to (the node running low on )?memory"
)


def silence_notices() -> None:
    """Silence what Ray prints of its own defaults, and of lost processes, which the package reports itself."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # warns that authentication is off
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that progress bars are off
    # The traceback of a task that lost its process; errors that end the dataset are raised besides.
    logging.getLogger("ray.data._internal.execution.streaming_executor_state").setLevel(logging.CRITICAL)
    stdout_deduplicator.skip_re = _LOST_PROCESS


def unwrapped(error: BaseException) -> BaseException:
    """The error inside Ray Train's private UserExceptionWithTraceback (its text is a traceback); others unchanged."""
    inner = getattr(error, "_base_exc", error)
    assert isinstance(inner, BaseException)
    return inner


def raylet_pid(node: Any) -> int:
    """Process id of the raylet of a node of `ray.cluster_utils.Cluster`, which drills kill."""
    return int(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
