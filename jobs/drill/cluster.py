"""What drills run on: a cluster of several raylets on this machine, and commands whose lines are read as they come."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

import boxsup_dist
from boxsup_dist.distributed.ray_internals import raylet_pid
from boxsup_dist.errors import InputError

# A node has room for one worker. The head's third CPU is for data tasks.
HEAD_CPUS, NODE_CPUS = 3, 2
NODE_MEMORY = 256 * 2**20
PATIENCE_S = 400


# -- the cluster -------------------------------------------------------------------------------------------------------


class Raylets:
    """A head and one more node, each with its own processes and object store; they spill to `spill`."""

    def __init__(self, spill: str | None = None) -> None:
        head: dict[str, Any] = {"num_cpus": HEAD_CPUS, "object_store_memory": NODE_MEMORY, "include_dashboard": False}
        if spill is not None:
            head["object_spilling_directory"] = spill  # the other node takes it from the head
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.node = self.add_node()

    def add_node(self) -> Any:
        """A fresh second node."""
        self.node = self.cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=NODE_MEMORY)
        return self.node

    def kill_node(self) -> None:
        """The second node's raylet and all that it started, at once, as a machine that loses its power."""
        raylet = raylet_pid(self.node)
        for process in [*_family(raylet), psutil.Process(raylet)]:
            process.kill()
        self.cluster.remove_node(self.node, allow_graceful=False)

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray workers of this cluster whose title begins so, those of the second node first."""
        raylets = [raylet_pid(node) for node in self.cluster.list_all_nodes()]
        found = [process for raylet in reversed(raylets) for process in _family(raylet)]
        return [process for process in found if _title(process).startswith(title)]


def _family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def raylets(spill: str | None = None) -> Iterator[Raylets]:
    """A cluster that RAY_ADDRESS names while it lasts; `spill` is a folder for its spilled objects."""
    checkout = str(Path(boxsup_dist.__file__).parents[1])
    paths = [checkout, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    cluster = Raylets(spill)
    before = os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_ADDRESS"] = cluster.cluster.address
    try:
        yield cluster
    finally:
        del os.environ["RAY_ADDRESS"]
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        cluster.cluster.shutdown()


# -- a command and its lines -------------------------------------------------------------------------------------------


class Command:
    """A job in a process of its own; keeps when each of its lines came. `env` is added to the environment."""

    def __init__(self, words: list[str], log: str, env: dict[str, str] | None = None) -> None:
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._log = Path(log)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self._log.open("a") as file:
            for line in self.process.stdout:
                self.lines.append((time.monotonic(), line.rstrip()))
                file.write(line)
                file.flush()

    def wait_for(self, ready: Callable[[], Any]) -> Any:
        """What `ready` gives once it gives something true. InputError if the command ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := ready()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise InputError("the command ended, or nothing happened", file=self._log, value=self.lines[-3:])
            time.sleep(0.005)
        return found

    def first_line(self, pattern: str, after: float) -> tuple[float, str] | None:
        """The first line since then that has the pattern."""
        return next((line for line in list(self.lines) if line[0] > after and re.search(pattern, line[1])), None)

    def end(self) -> int:
        """Wait for its end; returns its exit status."""
        code = self.process.wait(PATIENCE_S)
        self._thread.join()
        return code

    def finish(self) -> None:
        """Wait for its end. InputError if it failed."""
        code = self.end()
        if code:
            raise InputError(f"the command ended with status {code}", file=self._log, value=self.lines[-3:])

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
