"""The costs of equations 2 to 4 the plain way: every candidate's mask is drawn and every pixel's loss looked up.

The slow reference of `cost.candidate_costs`, which must give the same numbers: tests compare them, the benchmark times
them side by side. Drawing a mask is one lookup, not a search, so that the comparison is a fair one.
"""

from __future__ import annotations

import math

import numpy as np

from boxsup_dist.assignment.cost import BoxCosts, CostForm, box_iou
from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import BACKGROUND, Proposals


def oracle_costs(
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
    """As cost.candidate_costs: boxes (K, 4), class ids (K,), log_probs (C, H, W) or None; one BoxCosts a box."""
    costs = []
    for box, class_id in zip(boxes_xyxy.astype(np.float64), class_ids.tolist(), strict=True):
        inside, reach = (window(proposals, box, margin) for margin in (0.0, box_margin))
        candidates, overlap, regression, prior = [], [], [], []
        for index in range(len(proposals)):
            mask = draw_mask(proposals, index)
            iou = box_iou(box, tight_box(mask)[None])[0]
            if iou == 0:
                continue
            candidates.append(index)
            overlap.append(1 - iou)
            prior.append(rank_weight * math.log(index + 1))
            if log_probs is None:
                regression.append(0.0)
            elif form == "image":
                regression.append(image_loss(mask & reach, class_id, log_probs))
            else:
                regression.append(centred_loss(mask, inside, class_id, log_probs, logit_limit))
        costs.append(BoxCosts(np.array(candidates, np.int64), np.array(overlap), np.array(regression), np.array(prior)))
    return costs


def window(proposals: Proposals, box: np.ndarray, margin: float | None) -> np.ndarray:
    """Mask bool (H, W) of a box with its margin; None: everything."""
    height, width = proposals.superpixels.shape
    mask = np.zeros((height, width), bool)
    x0, y0, x1, y1 = pixel_box(box, height, width, margin=margin)
    mask[y0:y1, x0:x1] = True
    return mask


def draw_mask(proposals: Proposals, index: int) -> np.ndarray:
    """Mask bool (H, W) of one proposal."""
    lut = np.zeros(proposals.num_superpixels, bool)
    lut[proposals.members(index)] = True
    return lut[proposals.superpixels]


def tight_box(mask: np.ndarray) -> np.ndarray:
    """Smallest box xyxy, half-open, around a mask that is not empty, int (4,)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def image_loss(mask: np.ndarray, class_id: int, log_probs: np.ndarray) -> float:
    """Equation 3 divided by the image's pixels: the class inside the mask, background outside."""
    return float(-np.where(mask, log_probs[class_id], log_probs[BACKGROUND]).mean(dtype=np.float64))


def centred_loss(
    mask: np.ndarray, inside: np.ndarray, class_id: int, log_probs: np.ndarray, logit_limit: float | None
) -> float:
    """Sum over mask and box of (d - mean of d over the box), divided by the box's pixels (see cost.py)."""
    background, foreground = (log_probs[c][inside].astype(np.float64) for c in (BACKGROUND, class_id))
    margin = background - foreground
    if logit_limit is not None:
        margin = np.clip(margin, -logit_limit, logit_limit)
    return float(((margin - margin.mean()) * mask[inside]).sum() / margin.size)
