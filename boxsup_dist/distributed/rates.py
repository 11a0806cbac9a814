"""Rates of a run as Ray metrics, which each node gives out for Prometheus beside Ray's own.

    ray_boxsup_images_per_s{stage="train" | "reassign" | "measure_labels" | "evaluate"}
    ray_boxsup_boxes_per_s    labels assigned in the last reassignment

Ray's own tell the rest, such as ray_object_store_used_memory and ray_spill_manager_objects_bytes.
"""

from __future__ import annotations

import time

from ray.util.metrics import Gauge


class StageRates:
    """Set by rank 0 alone."""

    def __init__(self) -> None:
        self._images = Gauge("boxsup_images_per_s", "Images a second of a stage of the run", tag_keys=("stage",))
        self._boxes = Gauge("boxsup_boxes_per_s", "Boxes a second whose labels the last reassignment chose")
        self._began = time.perf_counter()

    def begin(self) -> None:
        """A stage of the pool begins."""
        self._began = time.perf_counter()

    def set(self, stage: str, images_per_s: float) -> None:
        """The rate of a stage so far."""
        self._images.set(images_per_s, {"stage": stage})

    def set_boxes(self, num_boxes: int) -> None:
        """As many labels were chosen since the stage began."""
        self._boxes.set(num_boxes / max(time.perf_counter() - self._began, 1e-9))
