"""Refine the segments of an image beyond what any candidate can draw (not in the paper).

A candidate is a union of superpixels that some grouping found; the object's outline may be in none of them. What the
candidates agree on (consensus.py), a static label map such as GrabCut's where the source has one, and after the warm-up
the network's prediction among the classes of the boxes say how likely each pixel belongs to each box. A dense CRF over
the image sharpens that, and the superpixels that it gives to the box's class are the box's segment. Where the
candidates' consensus is against it, pixels are undecided (consensus.find_undecided): what two ways of looking agree on
is seldom wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from boxsup_dist.data.painting import front_order, pixel_box
from boxsup_dist.data.schema import BACKGROUND
from boxsup_dist.model.crf import crf_settings, dense_crf

STATIC_SHARE = 0.3  # of the votes, that a static label map has; half would outvote the candidates
NETWORK_SHARE = 0.3  # of the votes, that the network has; 0.2 and 0.5 were no better
MIN_PROBABILITY = 0.02  # of a class at a pixel of its box, and of background: the CRF may overrule any vote


def refine_segments(
    image: np.ndarray,
    superpixels: np.ndarray,
    boxes_xyxy: np.ndarray,
    class_ids: np.ndarray,
    votes: Sequence[np.ndarray | None],
    *,
    static_map: np.ndarray | None = None,
    log_probs: np.ndarray | None = None,
) -> list[np.ndarray | None]:
    """Of every box the share of each superpixel's pixels inside the box that the CRF gives to its class.

    image uint8 RGB (H, W, 3); superpixels uint16 (H, W); votes[k] float (S,), each superpixel's probability to
    belong to box k, None for a box that takes no segment (a crowd, or no candidate), whose result is None too.
    `static_map` uint8 (H, W) has STATIC_SHARE of the votes, and the network's `log_probs` (C, H, W) then NETWORK_SHARE.
    Returns float64 (S,) a box.
    """
    height, width = superpixels.shape
    windows = [pixel_box(box, height, width) for box in boxes_xyxy]
    classes = [BACKGROUND, *sorted({int(c) for c, vote in zip(class_ids, votes, strict=True) if vote is not None})]
    if len(classes) == 1:
        return [None] * len(votes)
    # As if only these classes could be.
    predicted = None if log_probs is None else softmax(log_probs[classes], axis=0)
    probs = np.zeros((len(classes), height, width), np.float32)
    allowed = np.zeros(probs.shape, bool)
    allowed[0] = True
    for k in front_order(boxes_xyxy):  # a smaller box in front leaves the ones behind what it does not want
        vote = votes[k]
        if vote is None:
            continue
        x0, y0, x1, y1 = windows[k]
        wanted = vote[superpixels[y0:y1, x0:x1]]
        own = classes.index(int(class_ids[k]))
        if static_map is not None:
            wanted = (1 - STATIC_SHARE) * wanted + STATIC_SHARE * (static_map[y0:y1, x0:x1] == class_ids[k])
        if predicted is not None:
            wanted = (1 - NETWORK_SHARE) * wanted + NETWORK_SHARE * predicted[own, y0:y1, x0:x1]
        inside = probs[:, y0:y1, x0:x1]
        inside *= 1 - wanted
        inside[own] += wanted
        allowed[own, y0:y1, x0:x1] = True
    probs[0] = 1 - probs[1:].sum(0)
    probs = np.where(allowed, np.clip(probs, MIN_PROBABILITY, 1), 1e-6)
    refined = dense_crf(image, np.log(probs / probs.sum(0)), crf_settings("refine"))
    label_map = np.where(allowed, refined, 0).argmax(0)

    shares: list[np.ndarray | None] = []
    for (x0, y0, x1, y1), class_id, vote in zip(windows, class_ids.tolist(), votes, strict=True):
        if vote is None:
            shares.append(None)
            continue
        ids = superpixels[y0:y1, x0:x1].ravel()
        given = (label_map[y0:y1, x0:x1] == classes.index(class_id)).ravel()
        size = np.bincount(ids, minlength=len(vote))
        shares.append(np.bincount(ids, weights=given, minlength=len(vote)) / np.maximum(size, 1))
    return shares
