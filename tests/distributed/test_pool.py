"""Real Ray: the actor pool's results depend on units and weights alone, whoever computes them and whoever dies."""

import os
import re
import time
from pathlib import Path

import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from boxsup_dist.distributed import session
from boxsup_dist.distributed.pool import NetworkPool
from boxsup_dist.errors import InputError, LostWorkError, RecordError, SettingError

UNITS = list(range(12))


class CountingNetwork(torch.nn.Module):
    """One weight, and how often weights were loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.num_loads = 0

    def load_state_dict(self, *args, **kwargs):
        self.num_loads += 1
        return super().load_state_dict(*args, **kwargs)


def compute(network: CountingNetwork, unit: int, *, factor: int, marker: str = "", slow: bool = False) -> tuple:
    """Return the result, the process and its loads; the process that gets unit 5 before `marker` exists dies."""
    if marker and unit == 5 and not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)
    if slow:
        time.sleep(0.05 * (unit % 3))  # units finish in another order than they begin
    return float(network.weight) + factor * unit, os.getpid(), network.num_loads


def refuse(network: torch.nn.Module, unit: int) -> int:
    if unit == 3:
        raise RecordError("bad record", file="x.jpg", field="f", value=1, expected="2")
    return unit


def die(network: torch.nn.Module, unit: int) -> None:
    os._exit(1)


def make_pool(num_actors: int) -> NetworkPool:
    pool = NetworkPool(CountingNetwork, num_actors=num_actors, num_cpus=0.25)
    pool.wait_ready()  # else the first member may do all of the work before the last one is there
    return pool


def weights_of(value: float) -> ray.ObjectRef:
    return ray.put({"weight": torch.tensor([value])})


@pytest.mark.parametrize("num_actors", [1, 4])
def test_results_come_in_the_order_of_the_units_and_weights_are_loaded_once_a_version(ray_local, num_actors):
    pool = make_pool(num_actors)
    reports = []
    first = list(
        pool.map(
            compute,
            UNITS,
            weights=weights_of(0.5),
            version="a",
            on_progress=lambda done, total: reports.append((done, total)),
            factor=10,
            slow=True,
        )
    )
    again = list(pool.map(compute, UNITS, weights=weights_of(7), version="a", factor=10))
    other = list(pool.map(compute, UNITS, weights=weights_of(0.25), version="b", factor=10))
    bare = list(pool.map(compute, UNITS, factor=10))
    pool.close()
    assert [value for value, *_ in first] == [value for value, *_ in again] == [0.5 + 10 * unit for unit in UNITS]
    assert [value for value, *_ in other] == [value for value, *_ in bare] == [0.25 + 10 * unit for unit in UNITS]
    assert {loads for *_, loads in first + again} == {1} and {loads for *_, loads in other + bare} == {2}
    assert len({pid for _, pid, _ in first}) == num_actors
    done = [number for number, total in reports if total == len(UNITS)]
    assert len(done) == len(reports) and done == sorted(set(done)) and done[-1] == len(UNITS)


def test_a_member_that_dies_changes_nothing(ray_local, tmp_path):
    pool = make_pool(2)
    marker = tmp_path / "died"
    results = list(pool.map(compute, UNITS, weights=weights_of(0.5), version="a", factor=10, marker=str(marker)))
    pool.close()
    assert marker.exists()
    assert [value for value, *_ in results] == [0.5 + 10 * unit for unit in UNITS]
    assert {loads for *_, loads in results} == {1}
    assert len({pid for _, pid, _ in results}) >= 2


def test_an_error_of_the_user_arrives_as_it_is_and_the_pool_lives_on(ray_local):
    pool = make_pool(2)
    with pytest.raises(InputError) as caught:
        list(pool.map(refuse, UNITS))
    assert type(caught.value) is RecordError
    assert str(caught.value) == "bad record; file: x.jpg; field: f; found: 1; expected: 2"
    assert list(pool.map(refuse, [0, 1, 2])) == [0, 1, 2]
    pool.close()


def test_a_unit_that_kills_its_member_every_time_ends_the_map(ray_local):
    pool = make_pool(1)
    with pytest.raises(
        LostWorkError, match=r"^a unit of work lost its process in every try: .*native code .*; field: unit; found: 0$"
    ):
        list(pool.map(die, [0]))
    pool.close()


class Unbuildable(torch.nn.Module):
    def __init__(self) -> None:
        os._exit(1)


def test_an_actor_that_never_gets_its_network_ends_the_wait(ray_local, monkeypatch):
    monkeypatch.setattr(NetworkPool, "max_starts", 2)
    pool = NetworkPool(Unbuildable, num_actors=1, num_cpus=0.5)
    with pytest.raises(LostWorkError, match=r"^an actor lost its process 2 times before it had built its network: "):
        pool.wait_ready()
    pool.close()


def die_at_5(network: torch.nn.Module, unit: int) -> int:
    if unit == 5:
        os._exit(1)
    return unit


@pytest.mark.parametrize("max_starts", [1, 20])
def test_a_unit_that_kills_its_members_takes_no_other_unit_with_it(ray_local, monkeypatch, max_starts):
    """With one start per actor, others take the places of those that Ray does not start again."""
    monkeypatch.setattr(NetworkPool, "max_starts", max_starts)
    pool = make_pool(2)
    results = list(pool.map(die_at_5, UNITS, on_lost=lambda unit, error: f"lost {unit}", max_retries=1))
    pool.close()
    assert results == [f"lost {unit}" if unit == 5 else unit for unit in UNITS]


def test_what_waits_for_room_is_named_with_what_it_waits_for(ray_local):
    while ray.available_resources().get("CPU") != 2:  # the actors of the test before are gone
        time.sleep(0.1)
    pool = NetworkPool(CountingNetwork, num_actors=2, num_cpus=1.5)  # the session has 2 CPUs
    group = placement_group([{"CPU": 1.5}, {"CPU": 0.75}])  # as Ray Train asks for two workers
    try:
        arrived, _ = ray.wait(list(pool.starting), timeout=60)
        pool.welcome(arrived[0])
        assert re.fullmatch(r"1 actor; waiting for 1.5 CPUs each, or starting: actors [12] of 2", pool.describe())
        shown = session.describe()
        assert re.match(r"nodes of the cluster: 1: \S+ has 0.5 of 2 CPUs free; train workers that wait", shown), shown
        assert "wait for 1.5 CPUs each: 1; " in shown and shown.endswith("wait for 0.75 CPU each: 1")
    finally:
        remove_placement_group(group)
        pool.close()


def test_a_task_for_which_no_node_has_a_gpu_is_refused(ray_local):
    session.check_task_room(0)
    with pytest.raises(
        SettingError, match=r"gpus_per_task; found: '1 CPU and 0.5 GPU'; .*the nodes are 1 x \(2 CPUs\)"
    ):
        session.check_task_room(0.5)


def test_no_unit_gives_no_result(ray_local):
    pool = make_pool(1)
    assert list(pool.map(compute, [], factor=1)) == []
    pool.close()
