"""Real Ray: plain tasks give the results in the order of the units, within a window, whatever process is lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

from boxsup_dist.distributed import ordered
from boxsup_dist.distributed.ordered import Step, Workers, map_units, run_in_order
from boxsup_dist.errors import InputError, LostWorkError, RecordError

UNITS = list(range(12))


def compute(unit: int, *, factor: int, marker: str = "") -> int:
    """Return the result; the process that gets unit 5 before `marker` exists dies."""
    if marker and unit == 5 and not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)
    time.sleep(0.02 * (unit % 3))  # units finish in another order than they begin
    return factor * unit


def refuse(unit: int) -> int:
    if unit == 3:
        raise RecordError("bad record", file="x.jpg", field="f", value=1, expected="2")
    return unit


def die(unit: int) -> None:
    os._exit(1)


def test_results_come_in_the_order_of_the_units(ray_local):
    reports = []
    results = map_units(compute, UNITS, on_progress=lambda done, total: reports.append((done, total)), factor=10)
    assert list(results) == [10 * unit for unit in UNITS]
    assert reports == [(done, len(UNITS)) for done in range(1, len(UNITS) + 1)]
    assert list(map_units(compute, [], factor=1)) == []


def test_a_lost_task_is_run_again(ray_local, tmp_path):
    marker = tmp_path / "died"
    assert list(map_units(compute, UNITS, factor=10, marker=str(marker))) == [10 * unit for unit in UNITS]
    assert marker.exists()


def test_a_unit_that_kills_its_process_every_time_ends_the_call_and_is_named(ray_local):
    with pytest.raises(
        LostWorkError, match=r"^a unit of work lost its process in every try: native code .*; field: unit; found: 7$"
    ):
        list(map_units(die, [7]))


def test_an_error_of_the_user_arrives_as_it_is(ray_local):
    with pytest.raises(InputError) as caught:
        list(map_units(refuse, UNITS))
    assert type(caught.value) is RecordError
    assert str(caught.value) == "bad record; file: x.jpg; field: f; found: 1; expected: 2"


class Recorded(Workers):
    """Units that finish at once, all but unit 0, which finishes when `release` is called."""

    max_running = 2

    def __init__(self) -> None:
        self.started: list[int] = []
        self._last = hold.remote()

    def start(self, unit: int, *, alone: bool) -> Step:
        self.started.append(unit)
        return Step(self._last if unit == 0 else ray.put(unit))

    def describe(self) -> str:
        return "nobody"


@ray.remote
def hold() -> int:
    time.sleep(1)
    return 0


def test_no_more_than_a_window_of_units_waits_for_a_slow_one(ray_local):
    workers = Recorded()
    results = run_in_order(workers, range(100))
    assert next(results) == 0
    assert len(workers.started) == ordered.WINDOW * workers.max_running
    assert list(results) == list(range(1, 100)) and workers.started == list(range(100))


@ray.remote
def fail(error: Exception) -> None:
    raise error


class Failing(Workers):
    """Each start fails with the next error; the unit is done when none is left."""

    max_running = 1

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def start(self, unit: int, *, alone: bool) -> Step:
        return Step(fail.remote(self.errors.pop()) if self.errors else ray.put(unit))

    def describe(self) -> str:
        return "nobody"


NODE = NodeDiedError("Task failed because the node was dead or unavailable")
MEMORY = OutOfMemoryError(
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 990b) was "
    "3.25GB used / 23.54GB limit (0.137968)\nOOM kill reason: ..."
)


def test_a_lost_node_is_not_counted_against_the_unit(ray_local):
    crash = WorkerCrashedError()
    assert list(run_in_order(Failing(*[NODE, crash] * 3, *[NODE] * 9), [7])) == [7]
    with pytest.raises(LostWorkError, match=r"in every try: native code crashed in it, or the system ended"):
        list(run_in_order(Failing(*[NODE, crash] * 4), [7]))
    with pytest.raises(LostWorkError, match=r"in every try: its node was lost; field: unit; found: 7$"):
        list(run_in_order(Failing(*[NODE] * 99), [7]))


def test_memory_that_ran_out_is_counted_and_named(ray_local):
    used = r"node 192\.0\.2\.2 ran out of memory \(3\.25GB of 23\.54GB in use\)"
    with pytest.raises(LostWorkError, match=used):
        list(run_in_order(Failing(*[MEMORY] * 4), [7]))
    assert list(run_in_order(Failing(*[MEMORY] * 4), [7], on_lost=lambda unit, error: type(error))) == [
        OutOfMemoryError
    ]
    assert list(run_in_order(Failing(MEMORY), [7], max_retries=1)) == [7]


def test_a_pool_without_a_network_needs_no_torch():
    code = "import sys, boxsup_dist.distributed.ordered; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
