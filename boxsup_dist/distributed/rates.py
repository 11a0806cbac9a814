"""Rates of a run as gauges of Ray, which each node offers to Prometheus beside Ray's own metrics.

    ray_boxsup_images_per_s{stage="train" | "reassign" | "measure_labels" | "evaluate"}
    ray_boxsup_boxes_per_s    labels assigned in the last reassignment

Ray's own gauges show the rest, such as ray_object_store_used_memory and ray_spill_manager_objects_bytes.
"""

from __future__ import annotations

from ray.util.metrics import Gauge


class StageRates:
    """The gauges of a run; rank 0 alone sets them."""

    def __init__(self) -> None:
        self._images = Gauge("boxsup_images_per_s", "Images per second of a stage of the run", tag_keys=("stage",))
        self._boxes = Gauge("boxsup_boxes_per_s", "Boxes per second whose labels the last reassignment chose")

    def set(self, stage: str, images_per_s: float) -> None:
        """Set the mean rate of a stage since it began."""
        self._images.set(images_per_s, {"stage": stage})

    def set_boxes(self, boxes_per_s: float) -> None:
        """Set the rate of the last reassignment."""
        self._boxes.set(boxes_per_s)
