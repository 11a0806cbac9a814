"""Static label maps: made once from boxes and image, without a network, by GrabCut or by WSSL's dense CRF.

Both methods cut the object of each box out of the image. The paper's Table 2 compares BoxSup with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.painting import front_order, pixel_box
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX, Record
from boxsup_dist.model.crf import crf_settings, dense_crf

StaticMethod = Literal["grabcut", "wssl"]
Cut = Callable[[NDArray[np.uint8], tuple[int, int, int, int]], NDArray[np.bool_]]
"""From an image RGB (H, W, 3) and a box x0, y0, x1, y1 in pixels: the object's mask inside the box, (h, w)."""

GRABCUT_ITERATIONS = 5
GRABCUT_SEED = 1  # of OpenCV's clustering of colours
COLLAPSED_SHARE = 0.1  # a result that keeps less of the box has lost the object; the whole box is taken instead

# WSSL (Papandreou et al., ICCV 2015), section 3.3.
WSSL_CENTRE_SHARE = 0.4  # share of a box's pixels, in its middle, that certainly are the object
WSSL_MARGIN = 0.3  # width of the certain background around the box that the CRF sees, as a share of the box's size
_CERTAIN, _OPEN = 0.99, 0.5  # foreground probabilities: of the certain centre, and of the rest of the box


def grabcut(image: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Cut an object out by GrabCut (Rother, Kolmogorov, Blake 2004) with the box as its rectangle.

    Args:
        image: RGB (H, W, 3).
        box: x0, y0, x1, y1 in pixels, inside the image.

    Returns:
        Mask (h, w) of the box. It is the whole box if GrabCut keeps less than COLLAPSED_SHARE of it, or if there are
        fewer than 9 pixels inside or outside the box.
    """
    import cv2

    x0, y0, x1, y1 = box
    everything = np.ones((y1 - y0, x1 - x0), bool)
    mask = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    mask[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if everything.size < 9 or (mask == cv2.GC_BGD).sum() < 9:  # each of the two colour models needs some pixels
        return everything
    cv2.setRNGSeed(GRABCUT_SEED)
    bgr = np.ascontiguousarray(image[..., ::-1])
    unused = (0, 0, 0, 0)  # OpenCV reads the rectangle in its other mode only
    cv2.grabCut(bgr, mask, unused, np.zeros((1, 65)), np.zeros((1, 65)), GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(mask[y0:y1, x0:x1], (cv2.GC_FGD, cv2.GC_PR_FGD))
    return found if found.mean() >= COLLAPSED_SHARE else everything


def wssl(image: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Cut an object out by WSSL's Bbox-Seg: a two-class CRF decides between the box's centre and its surroundings.

    The centre is certain object, the surroundings are certain background.

    Args:
        image: RGB (H, W, 3).
        box: x0, y0, x1, y1 in pixels, inside the image.

    Returns:
        Mask (h, w) of the box, which contains the centre.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    dx, dy = (max(1, round(WSSL_MARGIN * size)) for size in (x1 - x0, y1 - y0))
    left, top = max(0, x0 - dx), max(0, y0 - dy)
    window = image[top : min(height, y1 + dy), left : min(width, x1 + dx)]
    foreground = np.full(window.shape[:2], 1 - _CERTAIN)
    inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    foreground[inside] = _OPEN
    cut = (1 - WSSL_CENTRE_SHARE**0.5) / 2  # share cut off at each side, so that the centre has WSSL_CENTRE_SHARE
    iy, ix = int(cut * (y1 - y0)), int(cut * (x1 - x0))
    centre = (slice(y0 - top + iy, y1 - top - iy), slice(x0 - left + ix, x1 - left - ix))
    foreground[centre] = _CERTAIN
    log_probs = np.log(np.stack([1 - foreground, foreground])).astype(np.float32)
    found: NDArray[np.bool_] = dense_crf(window, log_probs, crf_settings("wssl_box")).argmax(0) == 1
    found[centre] = True  # to the CRF the centre is only likely: a small object may lose even these pixels
    return found[inside]


METHODS: dict[StaticMethod, Cut] = {"grabcut": grabcut, "wssl": wssl}


def static_label_map(image: NDArray[np.uint8], record: Record, cut: Cut) -> NDArray[np.uint8]:
    """Paint the label map of a record from the objects that a method cuts out.

    Args:
        image: RGB (H, W, 3).
        record: Boxes, classes and crowds are read.
        cut: A method of METHODS.

    Returns:
        Label map (H, W): each object in its class, smaller boxes in front, boxes of crowds IGNORE_INDEX, background
        elsewhere. Boxes without a pixel in the image are skipped.
    """
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
