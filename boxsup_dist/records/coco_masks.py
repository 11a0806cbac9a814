"""Masks of COCO's annotations: drawn from polygons or run lengths, and painted into one label map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from boxsup_dist.data import rle
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.errors import RecordError
from boxsup_dist.records.boxes import is_numbers, reaches_outside
from boxsup_dist.records.settings import Outside


def read_mask(segmentation: Any, height: int, width: int, outside: Outside) -> tuple[NDArray[np.bool_] | None, bool]:
    """Draw the mask of an annotation.

    Args:
        segmentation: Polygons or run lengths, as the file has them.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        outside: "refuse" raises for a polygon that reaches more than 1 px beyond the image, "clip" cuts it off.

    Returns:
        The mask (H, W), None if there is no segmentation; and whether a polygon was cut.

    Raises:
        RecordError: If the segmentation is neither polygons nor run lengths, or does not fit the image.
    """
    if not segmentation:
        return None, False
    if isinstance(segmentation, list):
        is_clipped = sum(_check_polygon(polygon, height, width, outside) for polygon in segmentation) > 0
        lowest = min(min(polygon) for polygon in segmentation)
        return _draw(segmentation, height, width, math.ceil(-lowest) if is_clipped and lowest < 0 else 0), is_clipped
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(counts, list | str):
        expected = "polygons or {size, counts}"
        raise RecordError(
            "the segmentation is no mask", field="segmentation", value=str(segmentation)[:60], expected=expected
        )
    if segmentation.get("size") != [height, width]:
        found, expected = segmentation.get("size"), str([height, width])
        raise RecordError("the mask has another size", field="segmentation.size", value=found, expected=expected)
    return rle.decode(counts, height, width), False


def _draw(polygons: list[list[float]], height: int, width: int, margin: int) -> NDArray[np.bool_]:
    """Draw the union of polygons. pycocotools misplaces lines that begin above or left of the margin."""
    shifted = [[value + margin for value in polygon] for polygon in polygons]
    runs = coco_mask.frPyObjects(shifted, height + margin, width + margin)
    return np.asarray(coco_mask.decode(coco_mask.merge(runs)), bool)[margin:, margin:]


def _check_polygon(polygon: Any, height: int, width: int, outside: Outside) -> bool:
    """Check the points of a polygon; return whether they reach beyond the image."""
    if not is_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
        expected = "x, y, x, y, ... in pixels, of three points or more"
        raise RecordError("not a polygon", field="segmentation", value=str(polygon)[:60], expected=expected)
    points = np.array(polygon, np.float64).reshape(-1, 2)
    found = [points.min(0).tolist(), points.max(0).tolist()]
    return reaches_outside(points, height, width, outside, what="a polygon", field="segmentation", value=found)


def paint_masks(
    shape: tuple[int, int], masks: Sequence[NDArray[np.bool_]], class_ids: Sequence[int], crowd: Sequence[bool]
) -> NDArray[np.uint8]:
    """Paint the label map of `shape` (H, W) from K instance masks (H, W).

    Crowds are painted first, as ignored pixels, then objects, larger ones first: the smaller of two lies in front.
    """
    label_map = np.full(shape, BACKGROUND, np.uint8)
    for k in sorted(range(len(masks)), key=lambda k: (not crowd[k], -int(masks[k].sum()))):
        label_map[masks[k]] = IGNORE_INDEX if crowd[k] else class_ids[k]
    return label_map
