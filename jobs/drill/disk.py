"""A full disk for spilled objects, and object stores that are full of other programs' objects.

Ray spills objects to disk when its object store is full: making an object fails only when both are full. The disk is a
small file system in memory; mounting it needs root. The stores are filled by actors that stand for another program on
the same cluster.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import OutOfDiskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from boxsup_dist.errors import SettingError

DISK_MIB = 16
LARGE, SMALL = 8 << 20, 32 << 10  # sizes of other programs' objects


def may_mount() -> bool:
    """Whether this user may mount file systems."""
    return os.geteuid() == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A file system of DISK_MIB in the folder until the block ends.

    Raises:
        SettingError: This user may not mount one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        expected = "a user who may mount file systems (root), or drills without disk"
        raise SettingError(
            "the drill needs a small disk", field="names", value=mounted.stderr.strip(), expected=expected
        )
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # lazy: a process of Ray may still use it


class SmallDisk:
    """What other programs write to the disk and delete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "of_others"

    def fill(self) -> None:
        """Write until the disk is full."""
        try:
            with self._file.open("wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * 4096)
        except OSError:
            return

    def free(self) -> None:
        """Delete what `fill` wrote."""
        self._file.unlink()


@ray.remote(num_cpus=0)
class _Hoard:
    """Another program's objects in the object store of one node."""

    def __init__(self) -> None:
        self.objects: list[ray.ObjectRef[Any]] = []

    def put(self, num_bytes: int, size: int) -> None:
        for _ in range(num_bytes // size):
            self.objects.append(ray.put(np.zeros(size, np.uint8)))

    def fill(self, size: int) -> None:
        """Put objects until Ray has no room for another."""
        try:
            while True:
                self.put(size, size)
        except OutOfDiskError:
            return


class Hoards:
    """A hoard on each node of the cluster that this process is connected to."""

    def __init__(self) -> None:
        self._actors: list[Any] = []
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            self._actors.append(_Hoard.options(scheduling_strategy=there).remote())  # type: ignore[attr-defined]

    def put(self, num_bytes: int) -> None:
        """Put `num_bytes` in each store."""
        ray.get([actor.put.remote(num_bytes, LARGE) for actor in self._actors])

    def fill(self) -> None:
        """Fill the stores."""
        ray.get([actor.fill.remote(SMALL) for actor in self._actors])

    def free(self) -> None:
        """End the hoards, which frees their objects."""
        for actor in self._actors:
            ray.kill(actor)
