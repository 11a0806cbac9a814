"""The cost of every candidate segment for every box of an image, computed without drawing a mask.

    cost(B, S) = Eo(B, S) + lambda * Er(S)                                         (paper, equations 2 to 4)
    Eo(B, S)   = 1 - IoU(B, tight box of S)
    Er(S)      = sum over the image of the pixel's loss, with the box's class c inside S and background outside

Reads one image's proposals, boxes and sums; returns a `BoxCosts` per box. `oracle.py` computes the same numbers the
plain way.

Why no mask is needed. Let d(p) = log p(background) - log p(c) at a pixel. Then Er(S) is a constant of the image plus
the sum of d over S. S is a union of superpixels: one pass over d gives one number per superpixel (`sums.py`, where the
network is), and one sparse product with the membership matrix gives Er of all candidates (here, on any CPU).

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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.assignment.sums import BoxSums
from boxsup_dist.data.schema import Proposals


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
    sums: Sequence[BoxSums],
    *,
    rank_weight: float = 0.0,
) -> list[BoxCosts]:
    """Costs of all candidates for each box of an image; the module's docstring defines them.

    Args:
        proposals: The image's proposals, best first; their superpixel map is not used.
        boxes_xyxy: (K, 4), 0-based, half-open.
        sums: Of each box, from `sums.reduce_scores`.
        rank_weight: Weight of the prior log(rank).

    Returns:
        K costs. Those of a box without a candidate are empty, as all are for an image without proposals.
    """
    if len(proposals) == 0:
        none = np.empty(0)
        return [BoxCosts(np.empty(0, np.int64), none, none) for _ in boxes_xyxy]
    costs: list[BoxCosts] = []
    for box, box_sums in zip(boxes_xyxy.astype(np.float64), sums, strict=True):
        overlap = 1.0 - box_iou(box, proposals.boxes)
        parts, _ = box_sums.dense(proposals.num_superpixels)
        # The product with the membership matrix.
        regression = box_sums.constant + np.add.reduceat(parts[proposals.indices], proposals.indptr[:-1])
        candidates = np.flatnonzero(overlap < 1.0)
        prior = rank_weight * np.log1p(candidates)  # proposals are stored best first
        costs.append(BoxCosts(candidates, overlap[candidates], regression[candidates], prior))
    return costs
