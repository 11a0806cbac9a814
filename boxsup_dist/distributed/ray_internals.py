"""What the package uses of Ray beyond its documented API, in one place: read this file first when Ray is upgraded.

Written for Ray 2.60. `tests/unit/test_architecture.py` refuses such imports elsewhere.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import grpc
from ray._private import services, state
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import AuthenticationError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

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


def unwrapped(error: BaseException) -> BaseException:
    """The error inside Ray Train's private wrappers of it, whose texts are tracebacks; others unchanged."""
    if isinstance(error, UserExceptionWithTraceback):
        return unwrapped(error._base_exc)
    if isinstance(error, WorkerHealthCheckFailedError):
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
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        request = gcs_service_pb2.GetAllNodeInfoRequest()  # type: ignore[attr-defined]  # generated, as GcsNodeInfo
        try:
            reply = stub.GetAllNodeInfo(request, timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                raise AuthenticationError(str(error.details())) from None
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise NoAnswerError(f"no reply within {timeout_s:.0f} s") from None
            raise NoAnswerError(str(error.details()).rpartition(": ")[2]) from None
    living = gcs_pb2.GcsNodeInfo.ALIVE  # type: ignore[attr-defined]
    alive = [node for node in reply.node_info_list if node.state == living]
    return {node.node_id.hex(): node.node_manager_address for node in alive}


def local_node_ids() -> set[str]:
    """Ids of the Ray nodes that run on this machine, of any cluster."""
    return set(services.find_node_ids())  # type: ignore[no-untyped-call]


def free_resources() -> dict[str, dict[str, float]]:
    """What each living node has free at this moment, by node id."""
    return dict(state.available_resources_per_node())  # type: ignore[no-untyped-call]


def raylet_pid(node: Any) -> int:
    """Process id of the raylet of a node of `ray.cluster_utils.Cluster`, which drills kill."""
    return int(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
