"""What Ray and Ray Train raise where there is no room for an object; jobs/drill makes it happen on a full disk."""

import pytest
from ray.exceptions import OutOfDiskError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from boxsup_dist.distributed.faults import no_room
from boxsup_dist.errors import NoRoomError
from boxsup_dist.runs.command_line import clear_errors

FULL = OutOfDiskError("Local disk is full")
IN_A_TASK = RayTaskError("load", "Traceback ...", FULL).as_instanceof_cause()
OF_A_WORKER = UserExceptionWithTraceback(IN_A_TASK, "Traceback ...")
BROKEN = UserExceptionWithTraceback(RuntimeError("connection closed by peer"), "Traceback ...")


@pytest.mark.parametrize(
    "error",
    [FULL, IN_A_TASK, WorkerGroupError("text", {0: BROKEN, 1: OF_A_WORKER}), ControllerError(IN_A_TASK)],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_reported_in_one_line(error, capsys):
    assert isinstance(no_room(error), NoRoomError)
    with pytest.raises(SystemExit, match="2"), clear_errors():
        raise error
    printed = capsys.readouterr().err
    assert printed.startswith("error: Ray has no room for an object") and "Traceback" not in printed and "df" in printed


def test_other_errors_are_left_alone():
    for error in (RuntimeError("disk"), WorkerGroupError("text", {0: BROKEN})):
        assert no_room(error) is None
        with pytest.raises(type(error)), clear_errors():
            raise error
