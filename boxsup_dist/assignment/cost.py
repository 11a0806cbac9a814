"""The cost of every candidate segment for every box of an image, computed without drawing a mask.

    cost(B, S) = Eo(B, S) + lambda * Er(S)                                         (paper, equations 2 to 4)
    Eo(B, S)   = 1 - IoU(B, tight box of S)
    Er(S)      = sum over the image of the pixel's loss, with the box's class c inside S and background outside

Reads one image's proposals, boxes and log-probabilities; returns a `BoxCosts` per box. `oracle.py` computes the same
numbers the plain way.

Why no mask is needed. Let d(p) = log p(background) - log p(c) at a pixel. Then Er(S) is a constant of the image plus
the sum of d over S. S is a union of superpixels: one pass over d gives one number per superpixel, and one sparse
product with the membership matrix gives Er of all candidates.

What the paper leaves open, and what we chose:

* Which cost wins. The paper draws from "the first k segments with the largest costs" (section 4.3). We take the
  lowest, because the same section defines the choice by the smallest cost.
* Weight of Eo. We leave out the factor 1/N of equation 2. It is the number of candidates, and would make the overlap
  of a box count 1/2,000 with 2,000 candidates.
* Normalisation of Er. Form "image" is the paper's, read as literally as possible: the mean over the image's pixels, so
  that lambda = 3 means the same for every image size. The constant of the image is kept. Equation 3 is a sum: beside
  at most 1/N of equation 2, 3 times a sum over 10^5 pixels would leave every choice to Er, which collapses (see below).
* Candidates of a box. They are the proposals whose tight box overlaps the box. A box without a candidate gets proposal
  -1, and its pixels are ignored in training.
* A pixel inside two boxes. Each box chooses on its own; the smaller box is painted in front
  (`data.painting.paint_segments`).
* Crowds take no candidate, and their boxes are ignored pixels. `difficult` boxes are treated as all others, because
  VOC's own segmentation masks label those objects too.
* Epoch 0. A network whose score layer is zero gives every candidate the same Er, so overlap alone decides. The warm-up
  (`warmup_epochs`) lets overlap alone decide in further epochs.

What we add to the paper (settings, off by default; `consensus.py` and `refine.py` add two more):

* Form "centred": Er = sum over S in B of (d - mean of d over B) / area(B). While a network still predicts too little
  foreground, d is positive nearly everywhere. The literal cost then picks the smallest segment, and the next network
  predicts even less foreground. The centred form sees only the contrast inside the box, so this drift does not occur.
  `logit_limit` clips d to +-`logit_limit`, so that a few very sure pixels do not outweigh the rest of the box.
* `box_margin`: Er counts, and painting shows, only the part of a segment inside the box grown by this share of its
  sides (form "centred" never counts more than the part inside). The overlap term still uses the tight box of the whole
  segment: if it were cut, every segment that covers the box would overlap it fully.
* `rank_weight`: adds rank_weight * log(rank), where rank 1 is the proposal method's best. The method judges objects by
  their outline and parts, which neither the box nor the network can see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.config import CostForm
from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import BACKGROUND, Proposals

Window = tuple[int, int, int, int]
"""Pixels x0, y0, x1, y1 of an image, half-open."""


@dataclass(frozen=True)
class BoxCosts:
    """Costs of the M candidates of one box, in proposal order (best first)."""

    candidates: NDArray[np.int64]  # (M,), proposal indices
    overlap: NDArray[np.float64]  # (M,), Eo: 1 - IoU
    regression: NDArray[np.float64]  # (M,), Er, not multiplied by lambda
    prior: NDArray[np.float64] | float = 0.0  # (M,), rank_weight * log(rank)

    def total(self, regression_weight: float) -> NDArray[np.float64]:
        """Eo + regression_weight * Er + prior, (M,); `regression_weight` is lambda."""
        return self.overlap + regression_weight * self.regression + self.prior


def box_iou(box: NDArray[np.floating], boxes: NDArray[np.number]) -> NDArray[np.float64]:
    """IoU of one box xyxy with M boxes (M, 4), as (M,); an empty box has IoU 0."""
    boxes = boxes.astype(np.float64)
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    area = float(np.prod(np.asarray(box[2:], np.float64) - box[:2]))
    iou: NDArray[np.float64] = intersection / np.maximum(areas + area - intersection, 1e-12)
    return iou


def candidate_costs(
    proposals: Proposals,
    boxes_xyxy: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    log_probs: NDArray[np.float32] | None,
    *,
    form: CostForm,
    box_margin: float | None,
    logit_limit: float | None = None,
    rank_weight: float = 0.0,
) -> list[BoxCosts]:
    """Costs of all candidates for each box of an image; the module's docstring defines them.

    Args:
        proposals: The image's proposals, best first.
        boxes_xyxy: (K, 4), 0-based, half-open.
        class_ids: (K,), 1..C-1.
        log_probs: (C, H, W), the network's log-softmax at the size of the superpixel map; None sets Er to 0, so that
            overlap alone decides.
        form: How Er is normalised: "image" or "centred".
        box_margin: How far outside its box a segment counts, as a share of the box's sides; None is no limit.
        logit_limit: Limit of |d| in form "centred"; None is no limit.
        rank_weight: Weight of the prior log(rank).

    Returns:
        K costs. Those of a box without a candidate are empty, as all are for an image without proposals.
    """
    if len(proposals) == 0:
        none = np.empty(0)
        return [BoxCosts(np.empty(0, np.int64), none, none) for _ in boxes_xyxy]
    costs: list[BoxCosts] = []
    sums: dict[int, NDArray[np.float64]] = {}  # by class: an image may have several boxes of one class
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
    box: NDArray[np.float64],
    class_id: int,
    log_probs: NDArray[np.float32],
    box_margin: float | None,
    sums: dict[int, NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Er of form "image", (P,): equation 3 divided by the image's pixels. `sums` keeps what boxes of a class share."""
    num_pixels = log_probs[BACKGROUND].size
    all_background = -float(log_probs[BACKGROUND].sum(dtype=np.float64))
    height, width = proposals.superpixels.shape
    if box_margin is not None:
        window = pixel_box(box, height, width, margin=box_margin)
        inside = _superpixel_sums(proposals, _background_margin(log_probs, class_id, window), window)
        margins = _segment_sums(inside, proposals)
    else:
        if class_id not in sums:
            whole = (0, 0, width, height)
            values = _superpixel_sums(proposals, _background_margin(log_probs, class_id, whole), whole)
            sums[class_id] = _segment_sums(values, proposals)
        margins = sums[class_id]
    regression: NDArray[np.float64] = (all_background + margins) / num_pixels
    return regression


def _centred_regression(
    proposals: Proposals,
    box: NDArray[np.float64],
    class_id: int,
    log_probs: NDArray[np.float32],
    limit: float | None,
) -> NDArray[np.float64]:
    """Er of form "centred", (P,): sum over S in B of (d - mean of d over B), divided by the area of B."""
    height, width = proposals.superpixels.shape
    window = pixel_box(box, height, width)
    margin = _background_margin(log_probs, class_id, window, limit)
    centred = margin - margin.mean(dtype=np.float64)
    return _segment_sums(_superpixel_sums(proposals, centred, window), proposals) / margin.size


def _background_margin(
    log_probs: NDArray[np.float32], class_id: int, window: Window, limit: float | None = None
) -> NDArray[np.float64]:
    """The margin d = log p(background) - log p(c) at the pixels (h, w) of a window, clipped to +-limit."""
    x0, y0, x1, y1 = window
    background, own = log_probs[BACKGROUND, y0:y1, x0:x1], log_probs[class_id, y0:y1, x0:x1]
    # In float64, because float32 rounds the difference of two log-probabilities, and that would decide near ties.
    margin: NDArray[np.float64] = np.subtract(background, own, dtype=np.float64)
    return margin if limit is None else np.clip(margin, -limit, limit)


def _superpixel_sums(proposals: Proposals, values: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """Sum over every superpixel of the values (h, w) of a window's pixels, as (S,)."""
    x0, y0, x1, y1 = window
    ids = proposals.superpixels[y0:y1, x0:x1].ravel()
    sums = np.bincount(ids, weights=values.ravel(), minlength=proposals.num_superpixels)
    return sums.astype(np.float64, copy=False)


def _segment_sums(values: NDArray[np.float64], proposals: Proposals) -> NDArray[np.float64]:
    """Sum over every proposal of a number (S,) per superpixel, as (P,): the product with the membership matrix."""
    sums: NDArray[np.float64] = np.add.reduceat(values[proposals.indices], proposals.indptr[:-1])
    return sums
