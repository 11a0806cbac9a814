"""Label maps that boxes give without a network, once and for all: GrabCut, and WSSL's segmentation by a dense CRF.

Both cut the object of each box out of the image alone. They are the static rivals of BoxSup in the paper's Table 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from boxsup_dist.data.painting import front_order, pixel_box
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX, Record
from boxsup_dist.model.crf import crf_settings, dense_crf

StaticMethod = Literal["grabcut", "wssl"]
Cut = Callable[[np.ndarray, tuple[int, int, int, int]], np.ndarray]
"""Image uint8 RGB (H, W, 3) and box x0, y0, x1, y1 in pixels -> the object's mask inside the box, bool (h, w)."""

GRABCUT_ITERATIONS = 5
GRABCUT_SEED = 1  # of OpenCV's clustering of colours
COLLAPSED_SHARE = 0.1  # GrabCut keeps less of the box: it lost the object, and the whole box is taken

# WSSL (Papandreou et al., ICCV 2015), section 3.3.
WSSL_CENTRE_SHARE = 0.4  # of a box's pixels, in its middle, that are object for certain
WSSL_MARGIN = 0.3  # of the box's size, around it, that the CRF sees as background for certain
_CERTAIN, _OPEN = 0.99, 0.5


def grabcut(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """GrabCut (Rother, Kolmogorov, Blake 2004) with the box as its rectangle; the whole box where it collapses."""
    import cv2

    x0, y0, x1, y1 = box
    everything = np.ones((y1 - y0, x1 - x0), bool)
    mask = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    mask[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if everything.size < 9 or (mask == cv2.GC_BGD).sum() < 9:  # a colour model of either side needs some pixels
        return everything
    cv2.setRNGSeed(GRABCUT_SEED)
    bgr = np.ascontiguousarray(image[..., ::-1])
    unused = (0, 0, 0, 0)  # the rectangle counts in OpenCV's other mode only
    cv2.grabCut(bgr, mask, unused, np.zeros((1, 65)), np.zeros((1, 65)), GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(mask[y0:y1, x0:x1], (cv2.GC_FGD, cv2.GC_PR_FGD))
    return found if found.mean() >= COLLAPSED_SHARE else everything


def wssl(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Bbox-Seg: a two-class CRF, certain of the box's centre and of what lies outside, decides in between."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    dx, dy = (max(1, round(WSSL_MARGIN * size)) for size in (x1 - x0, y1 - y0))
    left, top = max(0, x0 - dx), max(0, y0 - dy)
    window = image[top : min(height, y1 + dy), left : min(width, x1 + dx)]
    foreground = np.full(window.shape[:2], 1 - _CERTAIN)
    inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    foreground[inside] = _OPEN
    cut = (1 - WSSL_CENTRE_SHARE**0.5) / 2  # of either side, so that the middle has that share of the area
    iy, ix = int(cut * (y1 - y0)), int(cut * (x1 - x0))
    centre = (slice(y0 - top + iy, y1 - top - iy), slice(x0 - left + ix, x1 - left - ix))
    foreground[centre] = _CERTAIN
    log_probs = np.log(np.stack([1 - foreground, foreground])).astype(np.float32)
    found = dense_crf(window, log_probs, crf_settings("wssl_box")).argmax(0) == 1
    found[centre] = True  # the CRF only weighs it: a small object may lose even its certain pixels
    return found[inside]


METHODS: dict[StaticMethod, Cut] = {"grabcut": grabcut, "wssl": wssl}


def static_label_map(image: np.ndarray, record: Record, cut: Cut) -> np.ndarray:
    """Label map uint8 (H, W) of a record: each box's object in its class, the smaller box in front, crowds ignored."""
    height, width = image.shape[:2]
    label_map = np.full((height, width), BACKGROUND, np.uint8)
    for k in front_order(record.boxes_xyxy):
        x0, y0, x1, y1 = box = pixel_box(record.boxes_xyxy[k], height, width)
        if x1 <= x0 or y1 <= y0:
            continue
        inside = label_map[y0:y1, x0:x1]
        if record.crowd[k]:
            inside[:] = IGNORE_INDEX
        else:
            inside[cut(image, box)] = record.class_ids[k]
    return label_map
