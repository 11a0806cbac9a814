"""The oracle: the costs of `cost.py` computed the plain way, from a drawn mask of every candidate.

It is the slow reference of `cost.candidate_costs`, which must return the same numbers: tests compare them, and the
benchmark times them side by side. A mask is drawn by one lookup, without a search, to keep the comparison fair.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.assignment.cost import BoxCosts, box_iou
from boxsup_dist.config import CostForm
from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import BACKGROUND, Proposals


def oracle_costs(
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
    """Costs of all candidates for each box; arguments and result are those of `cost.candidate_costs`."""
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


def window(proposals: Proposals, box: NDArray[np.float64], margin: float | None) -> NDArray[np.bool_]:
    """Mask (H, W) of a box grown by `margin`; None is the whole image."""
    height, width = proposals.superpixels.shape
    mask = np.zeros((height, width), bool)
    x0, y0, x1, y1 = pixel_box(box, height, width, margin=margin)
    mask[y0:y1, x0:x1] = True
    return mask


def draw_mask(proposals: Proposals, index: int) -> NDArray[np.bool_]:
    """Mask (H, W) of one proposal."""
    lut = np.zeros(proposals.num_superpixels, bool)
    lut[proposals.members(index)] = True
    mask: NDArray[np.bool_] = lut[proposals.superpixels]
    return mask


def tight_box(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Smallest box xyxy (4,), half-open, around a mask (H, W), which must not be empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def image_loss(mask: NDArray[np.bool_], class_id: int, log_probs: NDArray[np.float32]) -> float:
    """Er of form "image": mean loss over the image, with the class inside the mask (H, W) and background outside."""
    return float(-np.where(mask, log_probs[class_id], log_probs[BACKGROUND]).mean(dtype=np.float64))


def centred_loss(
    mask: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    class_id: int,
    log_probs: NDArray[np.float32],
    logit_limit: float | None,
) -> float:
    """Er of form "centred", with the masks (H, W) of the segment and of the box; see `cost.py`."""
    background, foreground = (log_probs[c][inside].astype(np.float64) for c in (BACKGROUND, class_id))
    margin = background - foreground
    if logit_limit is not None:
        margin = np.clip(margin, -logit_limit, logit_limit)
    return float(((margin - margin.mean()) * mask[inside]).sum() / margin.size)
