"""Real Ray: builds that are killed, continued, refused, and equal at any number of CPUs."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from boxsup_dist.data import tables
from boxsup_dist.data.schema import records_to_table
from boxsup_dist.distributed import build, crashes, session
from boxsup_dist.distributed.build import ShardContent
from boxsup_dist.errors import LostWorkError, RecordError, SettingError, TableError
from tests.distributed import slow_build

REPO = Path(__file__).parents[2]


def _files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _start_slow(out: Path, seconds: float) -> subprocess.Popen:
    # Another working directory: workers must find the package all the same.
    command = [sys.executable, "-m", "tests.distributed.slow_build", str(out), str(seconds)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    with Path(f"{out}.stderr").open("w") as stderr:
        return subprocess.Popen(command, cwd=out.parent, env=env, stderr=stderr)


def _wait_for_shards(out: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while len(list(out.glob("part-*.json"))) < count:
        assert process.poll() is None, f"the build ended before it was killed: {Path(f'{out}.stderr').read_text()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_build_is_no_table_and_the_next_call_continues(ray_local, tmp_path):
    unbroken = slow_build.build(str(tmp_path / "unbroken"))
    out = tmp_path / "killed"
    process = _start_slow(out, 0.4)
    _wait_for_shards(out, 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    times = {f.name: f.stat().st_mtime_ns for f in out.glob("part-*.json")}
    assert 3 <= len(times) < slow_build.NUM_SHARDS
    assert not (out / tables.MANIFEST).exists()
    with pytest.raises(TableError, match="unfinished"):
        tables.open_table(str(out), "records")
    (out / "part-00007.parquet.tmp-1234").write_bytes(b"half")
    continued = slow_build.build(str(out))
    for name, before in times.items():
        assert (out / name).stat().st_mtime_ns == before, "a finished shard was made again"
    assert continued.fingerprint == unbroken.fingerprint
    assert _files(out) == _files(tmp_path / "unbroken")


def test_the_bytes_do_not_depend_on_the_number_of_cpus(ray_local, tmp_path):
    process = _start_slow(tmp_path / "one", 0.0)
    slow_build.build(str(tmp_path / "two"))
    assert process.wait(timeout=120) == 0, Path(f"{tmp_path}/one.stderr").read_text()
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_a_whole_table_is_returned_at_once(ray_local, tmp_path):
    table = slow_build.build(str(tmp_path / "t"))
    assert table.num_rows == (slow_build.NUM_SHARDS - 1) * slow_build.ROWS == table.counts["images"]
    assert table.counts["skipped"] == 1 and table.shards[3].num_rows == 0
    before = _files(tmp_path / "t")
    started = time.monotonic()
    assert slow_build.build(str(tmp_path / "t"), seconds=60) == table
    assert time.monotonic() - started < 1
    assert _files(tmp_path / "t") == before


def test_an_input_error_of_a_task_reaches_the_caller_as_it_is(ray_local, tmp_path):
    def make_shard(index: int, crashed: Mapping[str, str]) -> ShardContent:
        if index == 4:
            raise RecordError("bad", file="x.jpg", field="f", value=1, expected="2")
        return slow_build.make_content(index, crashed)

    with pytest.raises(RecordError, match=r"^bad; file: x\.jpg; field: f; found: 1; expected: 2$"):
        slow_build.build_some(tmp_path, 12, make_shard)
    assert not (tmp_path / tables.MANIFEST).exists()
    table = slow_build.build_some(tmp_path, 12, slow_build.make_content)
    assert table.num_rows == (12 - 1) * slow_build.ROWS


def test_a_refused_table_is_not_published_and_its_bad_shards_are_read_again(ray_local, tmp_path):
    def refuse(shards):
        if any(shard.problems for shard in shards):
            raise RecordError("refused")

    def build(make_shard):
        return slow_build.build_some(tmp_path, 5, make_shard, check=refuse)

    with pytest.raises(RecordError, match="refused"):
        build(slow_build.make_content)
    assert not (tmp_path / tables.MANIFEST).exists()
    times = {i: (tmp_path / f"part-{i:05d}.parquet").stat().st_mtime_ns for i in range(5)}
    table = build(lambda index, crashed: ShardContent(slow_build.make_content(index + 10, crashed).table))
    made_again = {i for i in range(5) if (tmp_path / f"part-{i:05d}.parquet").stat().st_mtime_ns != times[i]}
    assert made_again == {3}
    assert table.num_rows == 5 * slow_build.ROWS


def test_memory_does_not_grow_with_the_number_of_shards(ray_local, tmp_path):
    """160 MiB of rows pass through; workers' peak and driver's memory may grow by less than a quarter of them."""
    shard_mib, num_shards = 2, 80

    def make_shard(index: int, crashed: Mapping[str, str]) -> ShardContent:
        row = slow_build.make_content(1, {}).table.slice(0, 1).to_pylist()[0]
        table = records_to_table([]).from_pylist(
            [{**row, "image": os.urandom(shard_mib * 2**20)}], schema=records_to_table([]).schema
        )
        return ShardContent(
            table, {"peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "process": os.getpid()}
        )

    driver_before = _resident_bytes()
    table = slow_build.build_some(tmp_path, num_shards, make_shard)
    driver_growth_mib = (_resident_bytes() - driver_before) / 2**20
    peaks_mib: dict[int, list[float]] = {}  # of each process, which earlier tests may have filled with libraries
    for shard in table.shards:
        peaks_mib.setdefault(shard.counts["process"], []).append(shard.counts["peak_kib"] / 2**10)
    assert table.num_bytes > num_shards * shard_mib * 2**20
    assert max(max(peaks) - min(peaks) for peaks in peaks_mib.values()) < 40
    assert driver_growth_mib < 60


def test_the_session_is_started_once_with_the_real_cores(ray_local, monkeypatch):
    session.start()
    session.start(1)
    assert session.total_cpus() == 2 <= max(2, session.num_cores()) <= max(2, os.cpu_count())
    assert not ray.data.DataContext.get_current().enable_progress_bars
    with pytest.raises(SettingError, match="num_cpus"):
        session.start(0)


def _crash_at(*crashers: str):
    """A make_shard whose process ends in native code at these images."""

    def make_shard(index: int, crashed: Mapping[str, str]) -> ShardContent:
        if set(crashers) & set(slow_build.image_ids(index)) - set(crashed):
            os.abort()
        return slow_build.make_content(index, crashed)

    return make_shard


def test_images_that_end_their_process_are_found_and_the_others_stored(ray_local, tmp_path, caplog, capfd):
    table = slow_build.build_some(tmp_path / "t", 6, _crash_at("test/1-0", "test/4-3"))
    reason = "native code crashed in it, or the system ended it for lack of memory (see `dmesg`)"
    problem = f"ended its process 4 times: {reason}"
    crashed = dict.fromkeys(("test/1-0", "test/4-3"), problem)
    assert {p["image_id"]: p["problem"] for shard in table.shards for p in shard.problems} == {
        "test/x": "broken",
        **crashed,
    }
    without = slow_build.build_some(tmp_path / "u", 6, lambda index, _: slow_build.make_content(index, crashed))
    assert _files(tmp_path / "t") == _files(tmp_path / "u") and table == replace(without, uri=table.uri)
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == f"some: shard 1 ended its process: looking for the image ({reason})"
    assert told[1] == f"some: test/1-0 {problem}" and len(told) == 4
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err and "raylet" not in printed.out


def test_a_process_that_ends_once_costs_no_image(ray_local, tmp_path):
    marker = tmp_path / "died"

    def make_shard(index: int, crashed: Mapping[str, str]) -> ShardContent:
        if index == 2 and not marker.exists():
            marker.touch()
            os._exit(1)
        return slow_build.make_content(index, crashed)

    slow_build.build_some(tmp_path / "t", 4, make_shard)
    slow_build.build_some(tmp_path / "u", 4, slow_build.make_content)
    assert marker.exists() and _files(tmp_path / "t") == _files(tmp_path / "u")


def test_a_build_whose_every_image_ends_its_process_ends(ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "MAX_LOST_SHARDS", 1)
    monkeypatch.setattr(crashes, "MANY_IMAGES", 1)
    everything = [image_id for index in range(6) for image_id in slow_build.image_ids(index)]
    expected = (
        r"^some: most of the images that were tried ended their process, 2 of 2, the last one test/\d-1: native code"
    )
    with pytest.raises(LostWorkError, match=expected):
        slow_build.build_some(tmp_path / "t", 6, _crash_at(*everything))
    assert not (tmp_path / "t" / tables.MANIFEST).exists()


def test_a_shard_that_ends_its_process_without_one_image_at_fault_is_named(ray_local, tmp_path):
    def make_shard(index: int, crashed: Mapping[str, str]) -> ShardContent:
        if index == 1 and not crashed:  # only all of its images together
            os.abort()
        return slow_build.make_content(index, crashed)

    with pytest.raises(LostWorkError, match=r"^some: shard 1 ends its process, but none .*test/1-0 to test/1-4"):
        slow_build.build_some(tmp_path / "t", 3, make_shard)
