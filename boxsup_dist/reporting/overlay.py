"""A label map drawn over its photo: translucent colours, opaque contours, and boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX

OPACITY = 0.45
CONTOUR_PX = 2
BOX_PX = 2


def overlay(
    image: NDArray[np.uint8],
    label_map: NDArray[np.uint8] | None,
    colours: NDArray[np.uint8],
    *,
    boxes: NDArray[np.float32] | None = None,
    box_classes: NDArray[np.int32] | None = None,
    opacity: float = OPACITY,
    contour_px: int = CONTOUR_PX,
) -> NDArray[np.uint8]:
    """Draw a label map over its photo.

    Args:
        image: RGB (H, W, 3).
        label_map: Class ids (H, W). Background shows the photo alone; ignored pixels have a tint and no contour. None
            draws no label map.
        colours: RGB of every class id, (256, 3).
        boxes: Boxes to frame, (K, 4), 0-based, half-open.
        box_classes: Class of each box, (K,); needed with `boxes`.
        opacity: Share of the class's colour inside a region, 0..1.
        contour_px: Width of the contour along the inside of a region; 0 draws none.

    Returns:
        RGB (H, W, 3), a new array.
    """
    drawn = image.copy()
    if label_map is not None:
        shown = label_map != BACKGROUND
        mixed = (1 - opacity) * image[shown] + opacity * colours[label_map[shown]]
        drawn[shown] = np.round(mixed).astype(np.uint8)
        edge = shown & (label_map != IGNORE_INDEX) & near_another_class(label_map, contour_px)
        drawn[edge] = colours[label_map[edge]]
    if boxes is not None:
        assert box_classes is not None
        for box, class_id in zip(boxes, box_classes, strict=True):
            _frame(drawn, box, colours[class_id])
    return drawn


def near_another_class(label_map: NDArray[np.uint8], width_px: int) -> NDArray[np.bool_]:
    """Pixels (H, W) with another class within `width_px`, along rows or columns."""
    near = np.zeros(label_map.shape, bool)
    for step in range(1, width_px + 1):
        down, right = label_map[step:] != label_map[:-step], label_map[:, step:] != label_map[:, :-step]
        near[step:] |= down
        near[: -step or None] |= down
        near[:, step:] |= right
        near[:, : -step or None] |= right
    return near


def _frame(image: NDArray[np.uint8], box: NDArray[np.float32], colour: NDArray[np.uint8]) -> None:
    """Draw a frame along the inside of a box, in place; a white rim separates dark from dark."""
    height, width = image.shape[:2]
    x0, y0 = np.clip(np.floor(box[:2]), 0, (width, height)).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(box[2:]), 0, (width, height)).astype(int).tolist()
    for frame_px, frame_colour in ((BOX_PX + 1, 255), (BOX_PX, colour)):
        inner = np.s_[y0 + frame_px : max(y1 - frame_px, 0), x0 + frame_px : max(x1 - frame_px, 0)]
        content = image[inner].copy()
        image[y0:y1, x0:x1] = frame_colour
        image[inner] = content
