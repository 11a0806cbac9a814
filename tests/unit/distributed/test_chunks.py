"""`run_in_order` with workers that take chunks, on a stand-in for Ray whose processes die as the test says."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import NodeDiedError, WorkerCrashedError

from boxsup_dist.distributed import ordered
from boxsup_dist.distributed.ordered import MAX_RETRIES, Step, Workers, run_in_order
from boxsup_dist.distributed.pool import _ahead
from boxsup_dist.errors import LostWorkError, RecordError


class Answer:
    """A reference: its value, or what getting it raises."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Members(Workers):
    """Members with two places each; the process of one that gets a unit of `killers` dies with its whole queue."""

    def __init__(self, num_members: int, killers: set[int], node_losses: int = 0) -> None:
        self.num_sharing, self.max_running = num_members, 2 * num_members
        self.killers, self.node_losses = killers, node_losses
        self.tries: list[tuple[list[int], bool]] = []

    def start(self, unit: list[int], *, alone: bool) -> Step:
        self.tries.append((unit, alone))
        error: Exception | None = WorkerCrashedError() if self.killers & set(unit) else None
        if error is None and self.node_losses:
            self.node_losses -= 1
            error = NodeDiedError("Task failed because the node was dead or unavailable")
        return Step(Answer(error or [10 * one for one in unit]))  # type: ignore[arg-type]

    def describe(self) -> str:
        return "members"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    rng = random.Random(0)

    def wait(references, *, num_returns=1, timeout=None, fetch_local=True):
        arrived = rng.sample(references, rng.randint(1, len(references)))
        return arrived, [r for r in references if r not in arrived]

    def get(reference):
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    monkeypatch.setattr(ordered.ray, "wait", wait)
    monkeypatch.setattr(ordered.ray, "get", get)
    monkeypatch.setattr(ordered, "GATHER_S", 0.0)


def run(members: Members, num_units: int, **options: Any) -> list[Any]:
    return list(run_in_order(members, range(num_units), **options))


@given(num_units=st.integers(0, 400), num_members=st.integers(1, 40))
def test_results_are_in_order_and_every_unit_goes_out_once(num_units, num_members):
    members, reports = Members(num_members, set()), []
    results = run(members, num_units, on_progress=lambda done, total: reports.append((done, total)))
    assert results == [10 * unit for unit in range(num_units)]
    assert sorted(unit for chunk, _ in members.tries for unit in chunk) == list(range(num_units))
    assert reports == sorted(set(reports)) and (not num_units or reports[-1] == (num_units, num_units))


def test_units_go_out_together_but_never_past_the_window():
    members = Members(1, set())
    run(members, 100)
    assert max(len(chunk) for chunk, _ in members.tries) > 1
    assert max(len(chunk) for chunk, _ in members.tries) <= ordered.WINDOW * members.max_running


@given(killers=st.sets(st.integers(0, 99), max_size=3), num_members=st.integers(1, 6))
def test_a_unit_that_kills_its_process_is_found_and_the_others_have_their_results(killers, num_members):
    members = Members(num_members, killers)
    results = run(members, 100, on_lost=lambda unit, error: f"lost {unit}")
    assert results == [f"lost {unit}" if unit in killers else 10 * unit for unit in range(100)]
    for killer in killers:
        singly = [alone for chunk, alone in members.tries if chunk == [killer]]
        in_chunks = [chunk for chunk, _ in members.tries if killer in chunk and len(chunk) > 1]
        assert len(singly) == MAX_RETRIES + 1 and all(singly[1:]) and len(in_chunks) <= 1
        # What shared a chunk with it is run again, each unit alone in its process.
        for unit in {unit for chunk in in_chunks for unit in chunk}:
            assert ([unit], True) in members.tries


def test_without_on_lost_the_unit_is_named():
    with pytest.raises(LostWorkError, match=r"in every try: native code crashed.*; field: unit; found: 57$"):
        run(Members(2, {57}), 100)


def test_a_lost_node_takes_a_chunk_apart_and_nothing_else():
    members = Members(3, set(), node_losses=9)
    assert run(members, 200) == [10 * unit for unit in range(200)]
    assert not any(alone for _, alone in members.tries)


def test_units_are_read_one_ahead_in_their_order_and_an_error_arrives():
    reads: list[int] = []

    def read(unit: int) -> int:
        reads.append(unit)
        if unit == 5:
            raise RecordError("bad record")
        return 10 * unit

    for unit, value in enumerate(_ahead(read, range(5))):
        assert value == 10 * unit and len(reads) <= unit + 2
    assert reads == list(range(5)) and list(_ahead(read, [7])) == [70]
    with pytest.raises(RecordError, match="bad record"):
        list(_ahead(read, [4, 5, 6]))
