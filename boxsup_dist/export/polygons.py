"""Masks as polygons along the edges of pixels.

A polygon has no hole, and one line of YOLO is one polygon. So a hole is joined to the outline around it by a slit
without width, and so are the parts of an object where a format wants one polygon. Filling such a polygon gives the mask
with its holes.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Corners this close to the line between their neighbours are left out. So small a distance keeps the pixels of real
# masks; half a pixel changes some.
TOLERANCE_PX = 0.25

Ring = NDArray[np.float64]
"""Corners (N, 2) of a polygon as x, y in pixels: 0 is the left or upper edge of the first pixel."""


def polygons(mask: NDArray[np.bool_], tolerance_px: float = TOLERANCE_PX) -> list[Ring]:
    """One polygon per connected part of a mask (H, W), its holes joined to it; [] for an empty mask.

    Args:
        mask: The mask.
        tolerance_px: Largest distance of a corner that is left out from the polygon; 0 keeps every edge of a pixel.
    """
    ys, xs = np.nonzero(mask)
    if len(ys) == 0:
        return []
    top, left = int(ys.min()), int(xs.min())
    cut = mask[top : ys.max() + 1, left : xs.max() + 1].astype(np.uint8)
    # cv2 draws contours through pixel centres. Corners of pixels, on a grid of half a pixel, are such centres here.
    # The grid is that fine because the sides of a gap of one pixel would be one line on a grid of pixels.
    doubled = np.pad(cut.repeat(2, 0).repeat(2, 1), ((0, 1), (0, 1)))
    corners = cv2.dilate(doubled, np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, tree = cv2.findContours(corners, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_simple(contour, 2 * tolerance_px) / 2 + (left, top) for contour in contours]
    parents = tree[0][:, 3]
    parts = []
    for index in np.flatnonzero(parents < 0):
        holes = [rings[k] for k in np.flatnonzero(parents == index)]
        parts.append(join([rings[index], *holes]))
    return parts


def _simple(contour: NDArray[Any], tolerance: float) -> Ring:
    fewer = cv2.approxPolyDP(contour, tolerance, closed=True)
    kept = fewer if len(fewer) >= 3 else contour
    return kept.reshape(-1, 2).astype(np.float64)


def join(rings: list[Ring]) -> Ring:
    """One polygon of several: each is joined to the ones before it by a slit between the closest corners."""
    joined, *others = rings
    for ring in others:
        distances = ((joined[:, None] - ring[None]) ** 2).sum(2)
        i, k = np.unravel_index(int(distances.argmin()), distances.shape)
        joined = np.concatenate([joined[: i + 1], ring[k:], ring[: k + 1], joined[i:]])
    return joined
