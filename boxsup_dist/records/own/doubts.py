"""What looks wrong in the boxes of a records table: lines for the person who drew them, before anything is trained."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.schema import Record, iter_records
from boxsup_dist.data.tables import Table

COLUMNS = ("image_id", "height", "width", "boxes_xyxy", "class_ids")
FEW_BOXES = 10  # a class with fewer is not learned
SMALL_PX = 8.0  # a side below one cell of the network's scores
WHOLE_SHARE = 0.95  # of the image: a box that says nothing about where the object ends
SAME_IOU = 0.9  # two boxes of one class that overlap so much are one object
MANY_SHARE = 0.2  # of all boxes: small or whole boxes are normal up to it
NUM_NAMED = 3  # images that a line names
NUM_CLASSES = 10  # class names that a line names


class Doubt(NamedTuple):
    """One thing to look at."""

    text: str
    images: Sequence[str]  # ids of some images that show it


def find_doubts(table: Table) -> list[Doubt]:
    """Look for classes with few boxes, names that differ in case alone, doubled boxes, and many small or whole boxes.

    Args:
        table: A records table; only the small columns are read.
    """
    counts: Counter[int] = Counter()
    found: dict[str, list[str]] = defaultdict(list)
    for record in _records(table):
        counts.update(record.class_ids.tolist())
        for kind, number in _odd_boxes(record).items():
            found[kind] += [record.image_id] * number
    doubts = []
    few = [f"{name} ({counts[k]})" for k, name in enumerate(table.classes) if k and counts[k] < FEW_BOXES]
    if few:
        rest = f" and {len(few) - NUM_CLASSES} more" if len(few) > NUM_CLASSES else ""
        listed = ", ".join(few[:NUM_CLASSES]) + rest
        doubts.append(Doubt(f"classes with fewer than {FEW_BOXES} boxes are hardly learned: {listed}", ()))
    for names in _alike(table.classes):
        doubts.append(Doubt(f"class names that differ in upper and lower case or spaces alone: {', '.join(names)}", ()))
    total = sum(counts.values())
    lines = {
        "twice": (1, "boxes of one class lie on each other: one object drawn twice?"),
        "small": (
            MANY_SHARE * total,
            f"boxes have a side below {SMALL_PX:g} pixels: the network cannot see such objects",
        ),
        "whole": (MANY_SHARE * total, "boxes fill their image: they do not say where the object ends"),
    }
    for kind, (least, text) in lines.items():
        if len(found[kind]) >= max(least, 1):
            doubts.append(Doubt(f"{len(found[kind])} of {total} {text}", tuple(dict.fromkeys(found[kind]))[:NUM_NAMED]))
    return doubts


def _records(table: Table) -> Iterator[Record]:
    for shard in table.read_shards(COLUMNS):
        yield from iter_records(shard)


def _odd_boxes(record: Record) -> dict[str, int]:
    """How many boxes of an image are odd, by kind."""
    boxes = record.boxes_xyxy.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    share = sides.prod(1) / (record.height * record.width)
    return {
        "small": int((sides.min(1, initial=np.inf) < SMALL_PX).sum()),
        "whole": int((share >= WHOLE_SHARE).sum()),
        "twice": sum(_num_doubled(boxes[record.class_ids == c]) for c in np.unique(record.class_ids)),
    }


def _num_doubled(boxes: NDArray[np.float64]) -> int:
    """Boxes (K, 4) that overlap an earlier one by SAME_IOU or more."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    iou = shared / np.maximum(areas[:, None] + areas[None] - shared, 1e-12)
    return int((np.tril(iou, -1) >= SAME_IOU).any(1).sum())


def _alike(names: Sequence[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["".join(name.lower().replace("_", " ").replace("-", " ").split())].append(name)
    return [group for group in groups.values() if len(group) > 1]
