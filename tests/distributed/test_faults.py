"""What Ray and Ray Train raise for lost processes, memory and disk, as one line; jobs/drill makes most of it happen."""

import pytest
import torch
from ray.exceptions import OutOfDiskError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from boxsup_dist.distributed.faults import LOST, describe_loss, fault_of
from boxsup_dist.errors import LostWorkError, NoRoomError, StoreUnavailableError
from boxsup_dist.runs.command_line import clear_errors

FULL = OutOfDiskError("Local disk is full")
IN_A_TASK = RayTaskError("load", "Traceback ...", FULL).as_instanceof_cause()
OF_A_WORKER = UserExceptionWithTraceback(IN_A_TASK, "Traceback ...")
BROKEN = UserExceptionWithTraceback(RuntimeError("connection closed by peer"), "Traceback ...")
# As Ray 2.60 words them.
NO_MEMORY = OutOfMemoryError(
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 8f19) was "
    "5.79GB used / 23.54GB limit (0.245931)\nOOM kill reason: Memory usage 6216273920B exceeded threshold\n"
    "Ray killed 2 worker(s) based on the killing policy\nRefer to the documentation ..."
)
KILLED = RayActorError(
    error_msg="The actor died unexpectedly before finishing this task.\n\tclass_name: A\n\tip: 192.0.2.7\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2."
)
ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


def unhealthy(error: Exception) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.\nTraceback ...", error)


@pytest.mark.parametrize(
    "error",
    [FULL, IN_A_TASK, WorkerGroupError("text", {0: BROKEN, 1: OF_A_WORKER}), ControllerError(IN_A_TASK)],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_reported_in_one_line(error, capsys):
    assert isinstance(fault_of(error), NoRoomError)
    with pytest.raises(SystemExit, match="2"), clear_errors():
        raise error
    printed = capsys.readouterr().err
    assert printed.startswith("error: Ray has no room for an object") and "Traceback" not in printed and "df" in printed


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (NO_MEMORY, "node 192.0.2.2 ran out of memory (5.79GB of 23.54GB in use), so Ray ended the process"),
        (unhealthy(NO_MEMORY), "node 192.0.2.2 ran out of memory (5.79GB of 23.54GB in use), so Ray ended the process"),
        (
            unhealthy(KILLED),
            "native code crashed in it, or the system ended it for lack of memory (see `dmesg` on node 192.0.2.7)",
        ),
        (
            WorkerCrashedError(),
            "native code crashed in it, or the system ended it for lack of memory (see `dmesg`)",
        ),
        (
            UserExceptionWithTraceback(ON_GPU, "Traceback ..."),
            "out of memory (OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.)",
        ),
    ],
    ids=["ray", "ray-of-a-worker", "system-of-a-worker", "system-of-a-task", "gpu"],
)
def test_a_process_without_memory_names_the_node_and_the_settings_to_lower(error, line, capsys):
    assert describe_loss(error) == line
    assert describe_loss(error, "resources.a or resources.b") == (
        f"{line}; to need less memory, lower resources.a or resources.b"
    )
    # The other workers of the training only notice that their neighbour is gone.
    for whole in (error, WorkerGroupError("text", {0: BROKEN, 1: error})):
        if isinstance(whole, (*LOST, WorkerGroupError)):
            assert isinstance(fault_of(whole), LostWorkError)
            with pytest.raises(SystemExit, match="2"), clear_errors():
                raise whole
            assert capsys.readouterr().err == (
                f"error: a process was lost: {line}; expected: processes that live; run the same command again: it "
                "continues\n"
            )


def test_other_losses_are_named_and_give_no_advice_about_memory():
    gone = RayActorError(error_msg="The actor died because its node has died.\nMore")
    assert describe_loss(gone, "resources.a") == "its node was lost"


def test_a_store_that_is_away_at_every_attempt_is_the_error_to_show():
    away = StoreUnavailableError("the store failed for 10m00s, in 70 tries", file="s3://bucket/run")
    for whole in (away, WorkerGroupError("text", {0: BROKEN, 1: UserExceptionWithTraceback(away, "Traceback ...")})):
        assert fault_of(whole) is away


def test_other_errors_are_left_alone():
    for error in (RuntimeError("disk"), WorkerGroupError("text", {0: BROKEN})):
        assert fault_of(error) is None
        with pytest.raises(type(error)), clear_errors():
            raise error
