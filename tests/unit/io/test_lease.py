"""The lease of a folder: who gets it, who is refused with what line, when it is taken over, how a holder notices."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from boxsup_dist.errors import InputError, LeaseError
from boxsup_dist.io import lease, lease_file
from boxsup_dist.io.lease import Writer
from boxsup_dist.io.lease_file import open_lease_file

SINCE = "2026-11-28 20:15:00 UTC"
ELSEWHERE = replace(Writer.here(), host="node-7", process=4711, place="another machine", since=SINCE)


class Clock:
    """Its seconds pass by sleeping; `on_sleep` gets the time after each sleep."""

    def __init__(self, on_sleep: Callable[[float], None] = lambda now: None) -> None:
        self.now, self.on_sleep = 0.0, on_sleep

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
        self.on_sleep(self.now)


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path) -> str:
    """A folder on disk, or in a store without conditional writes."""
    return str(tmp_path / "run") if request.param == "local" else f"memory://lease/{tmp_path.name}"


def uri_of(folder: str) -> str:
    return f"{folder}/writer.json"


def take(folder: str, clock: Clock | None = None, said: list[str] | None = None) -> lease.Lease:
    say = (lambda text: None) if said is None else said.append
    return lease.acquire(folder, uri_of(folder), say, clock or Clock())


def put(folder: str, writer: Writer) -> None:
    """Make this the writer, whatever is there."""
    file = open_lease_file(uri_of(folder))
    assert file.replace(writer.encode(), file.read()[1]) is not None


def written(folder: str) -> Writer:
    found = Writer.parse(open_lease_file(uri_of(folder)).read()[0])
    assert found is not None
    return found


def test_the_second_is_refused_with_host_process_and_time_of_the_first(folder):
    first = take(folder)
    mine = written(folder)
    assert mine.process == os.getpid() and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", mine.since)
    expected = (
        f"another command writes into this folder; file: {folder}; found: 'host {mine.host}, process {os.getpid()}, "
        f"since {mine.since}'; expected: another folder; or stop that process, then run the same command again, "
        "which continues"
    )
    for refused in (lambda: take(folder), lambda: lease.refuse_held(folder, uri_of(folder))):
        with pytest.raises(LeaseError) as caught:
            refused()
        assert str(caught.value) == expected
    first.claim.check()
    first.release()
    assert written(folder).released
    lease.refuse_held(folder, uri_of(folder))
    take(folder).release()


def test_a_folder_without_a_lease_is_free_and_a_look_leaves_nothing(tmp_path):
    lease.refuse_held(str(tmp_path / "run"), str(tmp_path / "run" / "writer.json"))
    assert not (tmp_path / "run").exists()


def test_the_lease_ends_with_its_block_also_by_an_error(folder):
    with pytest.raises(ZeroDivisionError), lease.held(folder, uri_of(folder), print, Clock()):
        raise ZeroDivisionError
    take(folder).release()


@pytest.mark.parametrize("end", ["kill", "reuse", "zombie"])
def test_a_dead_process_of_this_machine_is_replaced_at_once(tmp_path, end):
    """Also if its number belongs to another process now, or nobody has asked for its exit status."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    writer = replace(Writer.here(), process=child.pid, process_started=lease.psutil.Process(child.pid).create_time())
    put(str(tmp_path), writer)
    try:
        with pytest.raises(LeaseError, match=f"process {child.pid}, since"):
            take(str(tmp_path))
        if end == "reuse":
            put(str(tmp_path), replace(writer, process_started=writer.process_started - 3600))
        else:
            child.kill()
            if end == "kill":
                child.wait()
            else:
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        clock = Clock()
        take(str(tmp_path), clock).release()
        assert clock.now == 0
    finally:
        child.kill()
        child.wait()


def test_a_lease_of_another_machine_is_taken_over_when_nobody_renews_it_for_a_minute(folder):
    put(folder, ELSEWHERE)
    clock, said = Clock(), []
    take(folder, clock, said).release()
    assert lease.STALE_S <= clock.now <= lease.STALE_S + 2 * lease.LOOK_EVERY_S
    waiting = f"{folder} was written by host node-7, process 4711, since 2026-11-28 20:15:00 UTC: waiting up to 60 s"
    assert said[0].startswith(waiting)


def test_a_lease_of_another_machine_that_is_renewed_is_refused(folder):
    put(folder, ELSEWHERE)

    def renew(now: float) -> None:
        if now >= lease.RENEW_EVERY_S:
            put(folder, replace(ELSEWHERE, renewals=1))

    clock = Clock(renew)
    with pytest.raises(LeaseError, match="host node-7, process 4711"):
        take(folder, clock)
    assert clock.now <= lease.RENEW_EVERY_S + lease.LOOK_EVERY_S


def test_a_lease_that_is_released_while_we_wait_is_taken(folder):
    put(folder, ELSEWHERE)
    clock = Clock(lambda now: put(folder, replace(ELSEWHERE, released=True)) if now < 4 else None)
    take(folder, clock).release()
    assert clock.now <= 3 * lease.LOOK_EVERY_S


DAMAGED = [b"{", b"[]", b"\xff\xfe", b'{"token": 1}', b"[" * 100_000]
DAMAGED += [replace(ELSEWHERE, process=value).encode() for value in ("one", None, -1, 10**30, 1.5)]  # type: ignore[arg-type]
DAMAGED += [replace(ELSEWHERE, token=[1], process_started="noon").encode()]  # type: ignore[arg-type]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_lease_is_waited_for_and_replaced(tmp_path, content):
    Path(tmp_path, "writer.json").write_bytes(content)
    clock, said = Clock(), []
    take(str(tmp_path), clock, said).release()
    assert clock.now >= lease.STALE_S and "an unknown process" in said[0]


def test_a_holder_that_was_taken_over_notices_and_writes_no_more(folder):
    mine = take(folder)
    claim = pickle.loads(pickle.dumps(mine.claim))
    claim.check()
    put(folder, ELSEWHERE)
    expected = f"taken this folder over, so this one stops; file: {folder}; found: 'host node-7, process 4711, since"
    with pytest.raises(LeaseError, match=re.escape(expected)):
        claim.check()
    mine.release()
    assert written(folder) == ELSEWHERE


def test_a_lease_file_that_was_deleted_is_noticed(tmp_path):
    mine = take(str(tmp_path))
    (tmp_path / "writer.json").unlink()
    with pytest.raises(LeaseError, match="its lease file is gone"):
        mine.claim.check()
    mine.release()
    assert not (tmp_path / "writer.json").exists()


def test_the_holder_renews(folder, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_EVERY_S", 0.01)
    mine = take(folder)
    looked = threading.Event()
    for _ in range(500):
        if written(folder).renewals >= 3:
            break
        looked.wait(0.01)
    mine.release()
    last = written(folder)
    assert last.renewals >= 3 and last.released
    looked.wait(0.05)
    assert written(folder) == last


def test_of_many_that_start_at_once_one_wins(tmp_path):
    """Eight processes: each prints whether it got the lease, and keeps it until all have tried."""
    code = (
        "import sys; from boxsup_dist.io import lease; from boxsup_dist.errors import LeaseError\n"
        "sys.stdin.readline()\n"
        "try: lease.acquire(sys.argv[1], sys.argv[1] + '/writer.json', print); print('won', flush=True)\n"
        "except LeaseError: print('refused', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    results = [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.communicate("end\n")
    assert sorted(results) == ["refused"] * 7 + ["won"]


def test_a_store_without_conditional_writes_says_so_and_one_of_two_wins(tmp_path):
    folder, said = f"memory://lease/{tmp_path.name}", []
    clock = Clock(lambda now: put(folder, ELSEWHERE) if now < 4 else put(folder, replace(ELSEWHERE, renewals=1)))
    with pytest.raises(LeaseError, match="host node-7"):
        take(folder, clock, said)
    assert said[0] == f"the store has no conditional writes: it would let two commands that start at once into {folder}"


def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch):
    def refuse(file: int, kind: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lease_file.fcntl, "flock", refuse)
    said = []
    take(str(tmp_path), said=said).release()
    assert "no conditional writes" in said[0]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "run").write_bytes(b"a file")
    with pytest.raises(
        InputError, match=r"cannot (read|write) the lease; file: .*/run/writer\.json; found: 'Not a directory'"
    ):
        take(str(tmp_path / "run"))


def test_the_file_names_the_writer_for_people(tmp_path):
    take(str(tmp_path)).release()
    values = json.loads((tmp_path / "writer.json").read_text())
    assert values["process"] == os.getpid() and values["released"] is True
