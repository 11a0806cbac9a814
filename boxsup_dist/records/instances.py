"""Objects of an object map (VOC's SegmentationObject, SBD's GTinst), and which object each box of a record belongs to.

An object map gives every pixel the number of its object; 0 is background and 255 is void.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from boxsup_dist.data import rle
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.data.superpixels import superpixel_extents

# The smaller an object, the less it agrees with its box: VOC's void outline takes two pixels off on every side.
_MIN_IOU = 0.2


class Objects(NamedTuple):
    """The M objects of an object map."""

    object_map: NDArray[np.integer]  # (H, W)
    numbers: NDArray[np.integer]  # (M,), each object's number in the map
    boxes_xyxy: NDArray[np.int32]  # (M, 4), tight
    class_ids: NDArray[np.int32]  # (M,)

    def mask(self, index: int) -> bytes:
        """Return the mask of object `index`, encoded by `rle.encode`."""
        return rle.encode(self.object_map == self.numbers[index])


def find_objects(object_map: NDArray[np.uint8], label_map: NDArray[np.uint8]) -> Objects:
    """Find the objects of an object map (H, W) and take each one's class from a label map (H, W).

    The class is the one that most of the object's pixels have, background and void aside. An object without a pixel of
    a class is left out.
    """
    numbers, class_ids = [], []
    for number in np.unique(object_map[(object_map != BACKGROUND) & (object_map != IGNORE_INDEX)]):
        votes = np.bincount(label_map[object_map == number], minlength=IGNORE_INDEX + 1)
        votes[[BACKGROUND, IGNORE_INDEX]] = 0
        if votes.any():
            numbers.append(number)
            class_ids.append(votes.argmax())
    return make_objects(object_map, np.array(numbers, int), np.array(class_ids, np.int32))


def make_objects(
    object_map: NDArray[np.integer], numbers: NDArray[np.integer], class_ids: NDArray[np.int32]
) -> Objects:
    """Make Objects from their numbers (M,) and classes (M,); every number must occur in the object map (H, W)."""
    extents = superpixel_extents(object_map, int(object_map.max()) + 1)
    return Objects(object_map, numbers, extents[numbers], class_ids)


def masks_of_boxes(objects: Objects, boxes_xyxy: NDArray[np.float32], class_ids: NDArray[np.int32]) -> list[bytes]:
    """Match objects to the boxes of a record and return the mask of every box.

    A box is matched with at most one object of its class, and an object with at most one box. The matching has the
    largest sum of IoU between the boxes and the objects' tight boxes; pairs with an IoU below 0.2 are dropped.

    Args:
        objects: The objects of the image.
        boxes_xyxy: (K, 4).
        class_ids: (K,).

    Returns:
        K masks encoded by `rle.encode`. The mask of a box without an object is empty: VOC's masks leave out some small
        objects.
    """
    overlaps = _iou(boxes_xyxy, objects.boxes_xyxy) * (class_ids[:, None] == objects.class_ids[None])
    masks = [rle.encode(np.zeros(objects.object_map.shape, np.uint8))] * len(boxes_xyxy)
    for k, index in zip(*linear_sum_assignment(overlaps, maximize=True), strict=True):
        if overlaps[k, index] >= _MIN_IOU:
            masks[k] = objects.mask(index)
    return masks


def _iou(ours: NDArray[np.float32], theirs: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the IoU (K, M) of boxes (K, 4) and (M, 4), all of which have an area."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (ours, theirs)]
    iou: NDArray[np.float64] = shared / (areas[0][:, None] + areas[1][None] - shared)
    return iou
