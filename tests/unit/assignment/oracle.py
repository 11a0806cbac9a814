"""The costs of equations 2 to 4, candidate by candidate: every mask is drawn, every pixel's loss is looked up.

Slow and plain on purpose. boxsup_dist.assignment.cost must give the same numbers without drawing a mask.
"""

from __future__ import annotations

import numpy as np

from boxsup_dist.assignment.cost import BoxCosts, CostForm
from boxsup_dist.schema import BACKGROUND, Proposals


def oracle_costs(
    proposals: Proposals,
    boxes_xyxy: np.ndarray,
    class_ids: np.ndarray,
    log_probs: np.ndarray | None,
    *,
    form: CostForm,
    clip_to_box: bool,
    logit_limit: float | None = None,
) -> list[BoxCosts]:
    """Same arguments and result as candidate_costs: boxes (K, 4), class ids (K,), log_probs (C, H, W) or None."""
    costs = []
    for box, class_id in zip(boxes_xyxy.astype(np.float64), class_ids.tolist(), strict=True):
        inside = touched_by(box, proposals.superpixels.shape)
        candidates, overlap, regression = [], [], []
        for index in range(len(proposals)):
            segment = draw_segment(proposals, index)
            iou = box_iou(box, tight_box(segment))
            if iou == 0:
                continue
            candidates.append(index)
            overlap.append(1 - iou)
            if clip_to_box:
                segment = segment & inside
            if log_probs is None:
                regression.append(0.0)
            elif form == "image":
                regression.append(image_loss(segment, class_id, log_probs))
            else:
                regression.append(centred_contrast(segment, inside, class_id, log_probs, logit_limit))
        costs.append(BoxCosts(np.array(candidates, np.int64), np.array(overlap), np.array(regression)))
    return costs


def draw_segment(proposals: Proposals, index: int) -> np.ndarray:
    """Mask bool (H, W) of one proposal."""
    return np.isin(proposals.superpixels, proposals.members(index))


def touched_by(box: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels bool (H, W) of which the box x0, y0, x1, y1 covers a part; pixel (y, x) is the square from x to x + 1."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (x + 1 > box[0]) & (x < box[2]) & (y + 1 > box[1]) & (y < box[3])


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box x0, y0, x1, y1, half-open, around a mask."""
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def box_iou(a: np.ndarray, b: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return float(intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection))


def image_loss(segment: np.ndarray, class_id: int, log_probs: np.ndarray) -> float:
    """Mean over the image of -log p(label), the label being the class inside the segment and background outside."""
    label_map = np.where(segment, class_id, BACKGROUND)
    loss = -np.take_along_axis(log_probs.astype(np.float64), label_map[None], axis=0)[0]
    return float(loss.mean())


def centred_contrast(
    segment: np.ndarray, inside: np.ndarray, class_id: int, log_probs: np.ndarray, logit_limit: float | None
) -> float:
    """Sum over the segment's pixels in the box of (d - mean of d in the box), divided by the box's pixels.

    d is log p(background) - log p(class), limited to +-logit_limit.
    """
    margin = log_probs[BACKGROUND].astype(np.float64) - log_probs[class_id].astype(np.float64)
    if logit_limit is not None:
        margin = np.clip(margin, -logit_limit, logit_limit)
    return float((margin - margin[inside].mean())[segment & inside].sum() / inside.sum())
