"""Choices and default sizes of records tables; they stand apart from the readers, so a command line loads no reader."""

from __future__ import annotations

from typing import Literal

ClassList = Literal["voc", "all"]
BoxFormat = Literal["coco", "voc", "yolo", "csv", "cvat", "labelme", "label_studio", "open_images", "via"]
Outside = Literal["refuse", "clip"]  # what to do with a box or polygon that reaches beyond its image
ROWS_PER_SHARD = 64
ROW_GROUP_SIZE = 16
MAX_SKIPPED_SHARE = 0.05  # a table is refused if more of its images were skipped
NUM_TRAIN, NUM_VAL, SEED = 420, 60, 0  # of the synthetic data set
