"""The cost of every candidate segment for every box, without drawing a mask.

    cost(B, S) = (1 - IoU(B, tight box of S)) + lambda * Er(S)                     (paper, equations 2 to 4)

Er is a per-pixel loss summed over the image, with the box's class c inside S and background outside. With
d(p) = log p(background) - log p(c), that sum is a constant of the image plus the sum of d over S. As S is a union of
superpixels, one pass over d gives a number a superpixel, and one sparse product with the membership matrix gives Er of
all candidates.

What the paper leaves open, and what stands here:

* Its "first k segments with the largest costs" (section 4.3) means the lowest: its own definition minimises the cost.
* Normalisation of Er. Form "image" (the paper's, as literally as it can be read): the mean over the image's pixels, so
  that lambda = 3 means the same for every image size; the constant part is kept.
* Form "centred" departs from the paper: Er = sum over S in B of (d - mean of d over B) / area(B). While a network still
  under-predicts foreground, d is positive nearly everywhere and the literal cost picks the smallest segment; then the
  next network predicts still less foreground. Only the contrast inside the box enters here, and no such drift
  exists. d is limited to +-`logit_limit`, so that a few very sure pixels do not outweigh the rest of the box.
* `box_margin` (also not in the paper): only a segment's part inside the box, or not further from it than this share of
  its sides, is scored by Er (by form "centred" never more than the part inside) and painted. The overlap term still
  sees the tight box of the whole segment: cut, every segment that covers the box would overlap it fully.
* `rank_weight` (also not in the paper) adds a prior of the proposals' method: rank_weight * log(rank), the best being
  of rank 1. What the method finds likely to be an object, by outline and parts, box and network can't tell.
* Candidates are the proposals whose tight box overlaps the box at all. A box without one gets proposal -1.
* A pixel inside two boxes: each box chooses on its own; painting puts the smaller in front (regions.paint_segments).
* Crowds take no candidate, their boxes are ignored pixels. `difficult` boxes are boxes like any other: VOC's own
  segmentation masks label those objects too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import BACKGROUND, Proposals

CostForm = Literal["image", "centred"]


@dataclass(frozen=True)
class BoxCosts:
    """Costs of one box's candidates, in proposal order."""

    candidates: np.ndarray  # int64 (M,), proposal indices
    overlap: np.ndarray  # float64 (M,), 1 - IoU
    regression: np.ndarray  # float64 (M,), Er, not yet multiplied by lambda
    prior: np.ndarray | float = 0.0  # float64 (M,), rank_weight * log(rank)

    def total(self, regression_weight: float) -> np.ndarray:
        """Overlap + lambda * regression + prior, float64 (M,)."""
        return self.overlap + regression_weight * self.regression + self.prior


def box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one xyxy box with many (M, 4), float64 (M,); an empty box has IoU 0."""
    boxes = boxes.astype(np.float64)
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    area = float(np.prod(np.asarray(box[2:], np.float64) - box[:2]))
    return intersection / np.maximum(areas + area - intersection, 1e-12)


def _segment_sums(values: np.ndarray, proposals: Proposals) -> np.ndarray:
    """Sum of a number per superpixel over every proposal, float64 (P,): the sparse membership product."""
    return np.add.reduceat(values[proposals.indices], proposals.indptr[:-1])


def _background_margin(log_probs: np.ndarray, class_id: int, limit: float | None = None) -> np.ndarray:
    """D = log p(background) - log p(c), float64 (H, W), within +-limit."""
    # In float32 the difference of two log-probabilities would be rounded, and near ties decided by that.
    margin = np.subtract(log_probs[BACKGROUND], log_probs[class_id], dtype=np.float64)
    return margin if limit is None else np.clip(margin, -limit, limit)


def candidate_costs(
    proposals: Proposals,
    boxes_xyxy: np.ndarray,
    class_ids: np.ndarray,
    log_probs: np.ndarray | None,
    *,
    form: CostForm,
    box_margin: float | None,
    logit_limit: float | None = None,
    rank_weight: float = 0.0,
) -> list[BoxCosts]:
    """Costs of all candidates for each of the K boxes.

    `log_probs` is the network's float32 (C, H, W) log-softmax at the size of the superpixel map; None means that the
    overlap alone counts (Er = 0), as it does for a network whose score layer is zero.
    """
    if len(proposals) == 0:
        none = np.empty(0)
        return [BoxCosts(np.empty(0, np.int64), none, none) for _ in boxes_xyxy]
    costs: list[BoxCosts] = []
    sums: dict[int, np.ndarray] = {}  # per class: an image has several boxes of one class
    for box, class_id in zip(boxes_xyxy.astype(np.float64), class_ids.tolist(), strict=True):
        overlap = 1.0 - box_iou(box, proposals.boxes)
        if log_probs is None:
            regression = np.zeros(len(proposals))
        elif form == "image":
            regression = _image_regression(proposals, box, class_id, log_probs, box_margin, sums)
        else:
            regression = _centred_regression(proposals, box, class_id, log_probs, logit_limit)
        candidates = np.flatnonzero(overlap < 1.0)
        prior = rank_weight * np.log1p(candidates)  # proposals are stored best first
        costs.append(BoxCosts(candidates, overlap[candidates], regression[candidates], prior))
    return costs


def _image_regression(
    proposals: Proposals,
    box: np.ndarray,
    class_id: int,
    log_probs: np.ndarray,
    box_margin: float | None,
    sums: dict[int, np.ndarray],
) -> np.ndarray:
    """Er of equation 3 divided by the image's pixels, (P,)."""
    num_pixels = log_probs[BACKGROUND].size
    all_background = -log_probs[BACKGROUND].sum(dtype=np.float64)
    if box_margin is not None:
        margin = _background_margin(log_probs, class_id)
        inside = _superpixel_sums(proposals, margin, pixel_box(box, *margin.shape, margin=box_margin))
        return (all_background + _segment_sums(inside, proposals)) / num_pixels
    if class_id not in sums:
        margin = _background_margin(log_probs, class_id)
        whole = (0, 0, margin.shape[1], margin.shape[0])
        sums[class_id] = _segment_sums(_superpixel_sums(proposals, margin, whole), proposals)
    return (all_background + sums[class_id]) / num_pixels


def _centred_regression(
    proposals: Proposals, box: np.ndarray, class_id: int, log_probs: np.ndarray, limit: float | None
) -> np.ndarray:
    """Sum over S in B of (d - mean of d over B), divided by the area of B, (P,)."""
    x0, y0, x1, y1 = pixel_box(box, *proposals.superpixels.shape)
    margin = _background_margin(log_probs[:, y0:y1, x0:x1], class_id, limit)
    centred = margin - margin.mean(dtype=np.float64)
    full = np.bincount(
        proposals.superpixels[y0:y1, x0:x1].ravel(), weights=centred.ravel(), minlength=proposals.num_superpixels
    )
    return _segment_sums(full, proposals) / margin.size


def _superpixel_sums(proposals: Proposals, values: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Sum of `values` over every superpixel's pixels inside the window x0, y0, x1, y1, float64 (S,)."""
    x0, y0, x1, y1 = window
    return np.bincount(
        proposals.superpixels[y0:y1, x0:x1].ravel(),
        weights=values[y0:y1, x0:x1].ravel(),
        minlength=proposals.num_superpixels,
    )
