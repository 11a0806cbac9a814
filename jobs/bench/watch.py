"""Memory, CPU time and object store of this process and all processes that it started, sampled while a stage runs."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import psutil
import ray

SAMPLE_EVERY_S = 1.0
MIB = 2**20


class Sample(NamedTuple):
    """One look at all processes."""

    at_s: float  # since the start
    largest: dict[str, float]  # kind -> private MiB of its largest process
    total: float  # private MiB of all
    store: float  # MiB of the object store in use


def private_bytes(process: psutil.Process) -> int:
    """Resident less shared memory; 0 for a process that has ended."""
    try:
        memory: Any = process.memory_info()
    except psutil.Error:
        return 0
    return max(int(memory.rss) - int(memory.shared), 0)


def kind_of(title: str) -> str:
    """What a process of Ray does, by its title."""
    if title.startswith("ray::_Member"):
        return "actor"
    if title.startswith("ray::RayTrainWorker"):
        return "train worker"
    if title.startswith(("ray::_load_slice", "ray::_continue", "ray::Map", "ray::Read")):
        return "data task"
    return "idle" if title.startswith("ray::IDLE") else "ray itself"


def thirds(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row per kind of process: peak MiB in the first and in the last third of the time; about equal is flat."""
    if not samples:
        return []
    end = samples[-1].at_s
    first = [s for s in samples if s.at_s <= end / 3] or list(samples[:1])
    last = [s for s in samples if s.at_s >= end * 2 / 3]
    rows = []
    for kind in sorted({kind for sample in samples for kind in sample.largest}):
        peaks = [max(s.largest.get(kind, 0.0) for s in part) for part in (first, last)]
        rows.append({"process": kind, "first third": round(peaks[0]), "last third": round(peaks[1])})
    for name, value in (("all together", lambda s: s.total), ("object store", lambda s: s.store)):
        rows.append(
            {"process": name, "first third": round(max(map(value, first))), "last third": round(max(map(value, last)))}
        )
    return rows


class Watch:
    """Use as a context manager around a stage; afterwards `report` returns what the stage took."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.cpu_s: dict[str, float] = defaultdict(float)  # by kind
        self._seen: dict[int, float] = {}  # CPU seconds of a process when it was last seen
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seconds = 0.0

    def __enter__(self) -> Watch:
        self._started = time.monotonic()
        self._look()
        self.cpu_s.clear()  # CPU time spent before the stage
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._started
        self._ended.set()
        self._thread.join()
        self._look()

    def report(self) -> dict[str, Any]:
        """Seconds, CPU seconds by kind of process, peaks in MiB."""
        return {"seconds": self.seconds, "cpu_s": dict(self.cpu_s), "peaks_mib": thirds(self.samples)}

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            self._look()

    def _look(self) -> None:
        own = psutil.Process()
        largest: dict[str, float] = {}
        total = 0.0
        for process in [own, *own.children(recursive=True)]:
            try:
                kind = "job" if process.pid == own.pid else kind_of((process.cmdline() or [""])[0])
                times = process.cpu_times()
            except psutil.Error:  # the process ended meanwhile
                continue
            spent = times.user + times.system
            self.cpu_s[kind] += spent - self._seen.get(process.pid, 0.0)
            self._seen[process.pid] = spent
            mib = private_bytes(process) / MIB
            largest[kind] = max(largest.get(kind, 0.0), mib)
            total += mib
        self.samples.append(Sample(time.monotonic() - self._started, largest, total, _store_mib()))


def _store_mib() -> float:
    if not ray.is_initialized():
        return 0.0
    name = "object_store_memory"
    size: float = ray.cluster_resources().get(name, 0.0)  # type: ignore[no-untyped-call]
    free: float = ray.available_resources().get(name, 0.0)  # type: ignore[no-untyped-call]
    return max(size - free, 0.0) / MIB
