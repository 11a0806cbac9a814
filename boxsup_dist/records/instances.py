"""Objects of a map of object numbers (VOC's SegmentationObject, SBD's GTinst), and which box of a record is whose."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from boxsup_dist.data import rle
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.data.superpixels import superpixel_extents

# A box and its object agree less the smaller it is: VOC's void outline takes two pixels off an object on every side.
_MIN_IOU = 0.2


class Objects(NamedTuple):
    """Objects that a map tells apart."""

    object_map: np.ndarray  # integer (H, W)
    numbers: np.ndarray  # (N,), each object's number in the map
    boxes_xyxy: np.ndarray  # int32 (N, 4), tight
    class_ids: np.ndarray  # int32 (N,)

    def mask(self, index: int) -> bytes:
        """One object's mask as boxsup_dist.data.rle encodes it."""
        return rle.encode(self.object_map == self.numbers[index])


def find_objects(object_map: np.ndarray, label_map: np.ndarray) -> Objects:
    """Objects of a map whose 0 is background and 255 void, with the class that most of their pixels have, (H, W) both.

    An object without a pixel of a class is left out.
    """
    numbers, class_ids = [], []
    for number in np.unique(object_map[(object_map != BACKGROUND) & (object_map != IGNORE_INDEX)]):
        votes = np.bincount(label_map[object_map == number], minlength=IGNORE_INDEX + 1)
        votes[[BACKGROUND, IGNORE_INDEX]] = 0
        if votes.any():
            numbers.append(number)
            class_ids.append(votes.argmax())
    return make_objects(object_map, np.array(numbers, int), np.array(class_ids, np.int32))


def make_objects(object_map: np.ndarray, numbers: np.ndarray, class_ids: np.ndarray) -> Objects:
    """Objects of these numbers and classes, (N,) both, that are all in the map."""
    extents = superpixel_extents(object_map, int(object_map.max()) + 1)
    return Objects(object_map, numbers, extents[numbers], class_ids)


def masks_of_boxes(objects: Objects, boxes_xyxy: np.ndarray, class_ids: np.ndarray) -> list[bytes]:
    """The mask of every box, boxes (K, 4) and classes (K,): that of an object of its class whose tight box fits best.

    Each object goes to one box at most, so that all agree best together. The mask of a box without an object (VOC's
    masks leave out some small ones) is empty.
    """
    overlaps = _iou(boxes_xyxy, objects.boxes_xyxy) * (class_ids[:, None] == objects.class_ids[None])
    masks = [rle.encode(np.zeros(objects.object_map.shape, np.uint8))] * len(boxes_xyxy)
    for k, index in zip(*linear_sum_assignment(overlaps, maximize=True), strict=True):
        if overlaps[k, index] >= _MIN_IOU:
            masks[k] = objects.mask(index)
    return masks


def _iou(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes with area, (K, 4) and (N, 4) to (K, N)."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (ours, theirs)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)
