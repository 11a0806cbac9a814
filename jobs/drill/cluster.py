"""A cluster of several raylets on this machine, and commands whose output is read line by line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
    """A head node and a second node, each with its own processes and object store; both spill to `spill`."""

    def __init__(self, spill: str | None = None) -> None:
        head: dict[str, Any] = {"num_cpus": HEAD_CPUS, "object_store_memory": NODE_MEMORY, "include_dashboard": False}
        if spill is not None:
            head["object_spilling_directory"] = spill  # the second node takes it from the head
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.node = self.add_node()

    def add_node(self) -> Any:
        """Add a new second node."""
        self.node = self.cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=NODE_MEMORY)
        return self.node

    def kill_node(self, node: Any = None) -> None:
        """Kill the raylet of a node, else the second, and all that it started, like a machine that loses power."""
        node = node or self.node
        raylet = raylet_pid(node)
        for process in [*_family(raylet), psutil.Process(raylet)]:
            process.kill()
        self.cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, seconds: float) -> None:
        """Announce that a node is taken away in so many seconds, as a cloud does; it stays alive."""
        words = ["--address", self.cluster.address, "--node-id", node.node_id, "--reason-message", "drill"]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", f"{seconds:.0f}"]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *words], check=True)

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray workers of this cluster whose title begins with `title`, those of the second node first."""
        raylets = [raylet_pid(node) for node in self.cluster.list_all_nodes()]  # type: ignore[no-untyped-call]
        found = [process for raylet in reversed(raylets) for process in _family(raylet)]
        return [process for process in found if _title(process).startswith(title)]


def _family(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def raylets(spill: str | None = None) -> Iterator[Raylets]:
    """A cluster that RAY_ADDRESS names until the block ends; `spill` is a folder for its spilled objects."""
    checkout = str(Path(boxsup_dist.__file__).parents[1])
    paths = [checkout, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    train = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), **train}
    cluster = Raylets(spill)
    before = os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_ADDRESS"] = cluster.cluster.address
    try:
        yield cluster
    finally:
        del os.environ["RAY_ADDRESS"]
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        cluster.cluster.shutdown()  # type: ignore[no-untyped-call]


# -- a command and its lines -------------------------------------------------------------------------------------------


class Command:
    """A job in its own process, and the time of each line that it prints.

    Args:
        words: Module and arguments.
        log: File that gets the lines.
        env: Added to the environment.
        prefix: What precedes the command, such as `ip netns exec NAME`.
    """

    def __init__(
        self, words: list[str], log: str, env: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", *words],
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
        """The first true value that `ready` returns.

        Raises:
            InputError: The command ends first, or nothing happens for PATIENCE_S.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not (found := ready()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise InputError(
                    f"the command ended, or nothing happened for {PATIENCE_S:g} s",
                    file=self._log,
                    value=self.lines[-3:],
                )
            time.sleep(0.005)
        return found

    def first_line(self, pattern: str, after: float) -> tuple[float, str] | None:
        """The first line after this time that matches the pattern, with its time; None without one."""
        return next((line for line in list(self.lines) if line[0] > after and re.search(pattern, line[1])), None)

    def end(self) -> int:
        """Wait for the end of the command and return its exit status."""
        code = self.process.wait(PATIENCE_S)
        self._thread.join()
        return code

    def finish(self) -> None:
        """Wait for the end of the command.

        Raises:
            InputError: It failed.
        """
        code = self.end()
        if code:
            raise InputError(f"the command ended with status {code}", file=self._log, value=self.lines[-3:])

    def kill(self) -> None:
        """Kill the command by SIGKILL."""
        self.process.kill()
        self.process.wait()
