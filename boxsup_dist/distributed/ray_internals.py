"""What the package uses of Ray beyond its documented API, in one place: read this file first when Ray is upgraded.

Written for Ray 2.60. `tests/unit/test_architecture.py` refuses such imports elsewhere.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import grpc
import ray
from ray._private import services, state, worker
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray._private.ray_logging import stdout_deduplicator
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError
from ray.experimental import internal_kv

from boxsup_dist import surroundings
from boxsup_dist.errors import SettingError

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray describes a submitted job to its driver in it
# A message of 900 characters for each, printed in spite of log_to_driver=False. RAY_DEDUP_LOGS_SKIP_REGEX is its
# setting, but is read when Ray is imported.
_LOST_PROCESS = re.compile(
    "A worker died or was killed while executing a task|due to (the node running low on )?memory"
)
# What Ray appends to its folder for the path of a socket, with a process id of seven digits.
SOCKET = "ray/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"
MAX_SOCKET_BYTES = 107  # of an AF_UNIX path on Linux


def silence_notices() -> None:
    """Silence what Ray prints of its own defaults, and of lost processes, which the package reports itself."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # warns that authentication is off
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that progress bars are off
    # The traceback of a task that lost its process; errors that end the dataset are raised besides.
    logging.getLogger("ray.data._internal.execution.streaming_executor_state").setLevel(logging.CRITICAL)
    stdout_deduplicator.skip_re = _LOST_PROCESS


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
    """The error inside Ray Train's private wrappers of it, whose texts are tracebacks; others unchanged."""
    # Not imported here: what failed may be the import of ray.train itself.
    train: Any = sys.modules.get("ray.train.v2._internal.exceptions")
    if train is not None and isinstance(error, train.UserExceptionWithTraceback):
        return unwrapped(error._base_exc)
    if train is not None and isinstance(error, train.WorkerHealthCheckFailedError):
        return unwrapped(error.health_check_failure)
    return error


class NoAnswerError(Exception):
    """No Ray head answers at an address; the text says what does."""


def gcs_address(address: str) -> str:
    """HOST:PORT as Ray uses it; ConnectionError if "auto" finds no cluster on this machine."""
    return str(services.canonicalize_bootstrap_address(address))


def living_nodes(address: str, timeout_s: float) -> dict[str, str]:
    """Addresses of the cluster's living nodes by their ids.

    A plain call, because Ray's own client has no timeout: it waits for ten minutes, and writes to stderr.

    Raises:
        NoAnswerError: No head answers within `timeout_s`.
        AuthenticationError: The head wants a token, and there is none here, or another one.
    """
    with init_grpc_channel(address) as channel:
        stub: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        request = gcs_service_pb2.GetAllNodeInfoRequest()  # type: ignore[attr-defined]
        try:
            reply = stub.GetAllNodeInfo(request, timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                raise AuthenticationError(str(error.details())) from None
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise NoAnswerError(f"no reply within {timeout_s:.0f} s") from None
            raise NoAnswerError(str(error.details()).rpartition(": ")[2]) from None
    state_alive = gcs_pb2.GcsNodeInfo.ALIVE  # type: ignore[attr-defined]
    alive = [node for node in reply.node_info_list if node.state == state_alive]
    return {node.node_id.hex(): node.node_manager_address for node in alive}


def local_node_ids() -> set[str]:
    """Ids of the Ray nodes that run on this machine, of any cluster."""
    return set(services.find_node_ids())  # type: ignore[no-untyped-call]


def free_resources() -> dict[str, dict[str, float]]:
    """What each living node has free at this moment, by node id."""
    return dict(state.available_resources_per_node())  # type: ignore[no-untyped-call]


def is_worker() -> bool:
    """Whether Ray started this process to run tasks or an actor."""
    return bool(worker.global_worker.mode == ray.WORKER_MODE)


def put_value(key: str, value: str) -> None:
    """Keep a small value on the cluster's head, where all processes of the session can read it."""
    internal_kv._internal_kv_put(key.encode(), value.encode(), overwrite=True)


def values_below(prefix: str) -> dict[str, str]:
    """The values of `put_value` whose keys begin with the prefix."""
    found = {}
    for key in internal_kv._internal_kv_list(prefix.encode()):
        value = internal_kv._internal_kv_get(key)
        if value is not None:
            found[key.decode()] = value.decode()
    return found


def remove_values(prefix: str) -> None:
    """Forget the values of `put_value` whose keys begin with the prefix."""
    internal_kv._internal_kv_del(prefix.encode(), del_by_prefix=True)


def is_preempted() -> bool:
    """In a train worker: whether Ray Train knows that a node of the training is being taken away.

    Ray Train's own `get_preemption_info` exchanges messages between all workers at every call. This reads what its
    watcher has left in this process.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def before_resize(act: Callable[[], None]) -> Any:
    """A callback that makes Ray Train's controller call `act` before it ends workers to start more or fewer."""
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class BeforeResize(ControllerCallback):
        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if type(current_state).__name__ == "ResizingState":
                act()

    return BeforeResize()


def raylet_pid(node: Any) -> int:
    """Process id of the raylet of a node of `ray.cluster_utils.Cluster`, which drills kill."""
    return int(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
