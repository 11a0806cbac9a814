"""What the package uses of Ray beyond its documented API, in one place: read this file first when Ray is upgraded.

Written for Ray 2.60. `tests/unit/test_architecture.py` refuses such imports elsewhere.
"""

from __future__ import annotations

import logging
from typing import Any

from ray._private.ray_constants import PROCESS_TYPE_RAYLET


def silence_notices() -> None:
    """Silence two loggers that warn of their own defaults in every session; there is no setting for them."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # warns that authentication is off
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that progress bars are off


def unwrapped(error: BaseException) -> BaseException:
    """The error inside Ray Train's private UserExceptionWithTraceback (its text is a traceback); others unchanged."""
    inner = getattr(error, "_base_exc", error)
    assert isinstance(inner, BaseException)
    return inner


def raylet_pid(node: Any) -> int:
    """Process id of the raylet of a node of `ray.cluster_utils.Cluster`, which drills kill."""
    return int(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
