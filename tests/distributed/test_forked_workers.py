"""Real Ray: workers that are forked from one process (tests/forked_workers.py) do not draw the same random values."""

from __future__ import annotations

import random

import numpy as np
import ray
from ray._raylet import UniqueID


@ray.remote(num_cpus=0)
class _Drawer:
    def draw(self) -> tuple[str, float, float]:
        """An id of Ray, and a value of Python's and of NumPy's global generator."""
        return UniqueID.from_random().hex(), random.random(), float(np.random.random())


def test_workers_draw_different_values(ray_local):
    drawers = [_Drawer.remote() for _ in range(3)]
    drawn = ray.get([drawer.draw.remote() for drawer in drawers])
    for drawer in drawers:
        ray.kill(drawer)
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == len(drawers), values
