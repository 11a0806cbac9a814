"""The refinement of an image's segments by a CRF (not in the paper): outlines that no candidate has.

A candidate is a union of superpixels that some grouping found; the object's outline may be in none of them. Up to three
voters say how likely each pixel belongs to each box: the consensus of the candidates (`consensus.py`); a static label
map such as GrabCut's, if the source has one; and after the warm-up the network's prediction among the classes of the
boxes. A dense CRF over the image sharpens these probabilities. The superpixels that it gives to the box's class are the
refined segment. Superpixels that its outline cuts are undecided (`find_cut`). What the consensus had said of them no
longer counts: to call undecided whatever the refinement changes would keep nearly all of its changes from the training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from boxsup_dist.data.painting import front_order, pixel_box
from boxsup_dist.data.schema import BACKGROUND
from boxsup_dist.model.crf import crf_settings, dense_crf

STATIC_SHARE = 0.3  # the static label map's share of the votes; half would outvote the candidates
NETWORK_SHARE = 0.3  # the network's share of the votes; 0.2 and 0.5 were no better
MIN_PROBABILITY = 0.02  # of background, and of a class in its boxes: no vote is so sure that the CRF cannot overrule it
OUTSIDE_PROBABILITY = 1e-6  # of a class outside its boxes


def refine_segments(
    image: NDArray[np.uint8],
    superpixels: NDArray[np.uint16],
    boxes_xyxy: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    votes: Sequence[NDArray[np.float64] | None],
    *,
    static_map: NDArray[np.uint8] | None = None,
    log_probs: NDArray[np.float32] | None = None,
) -> list[NDArray[np.float64] | None]:
    """Refine the segments of all boxes of an image.

    Args:
        image: RGB (H, W, 3).
        superpixels: (H, W), ids 0..S-1.
        boxes_xyxy: (K, 4).
        class_ids: (K,), 1..C-1.
        votes: K arrays (S,): each superpixel's share of the votes (`Consensus.votes`); None for a box that
            takes no segment (a crowd, or a box without a candidate).
        static_map: Label map (H, W) that has STATIC_SHARE of the votes.
        log_probs: The network's log-softmax (C, H, W), which has NETWORK_SHARE of the votes after `static_map` voted.

    Returns:
        For each box an array (S,): of the pixels that a superpixel has inside the box, the share that the CRF gives to
        the box's class. None where `votes` is None.
    """
    height, width = superpixels.shape
    windows = [pixel_box(box, height, width) for box in boxes_xyxy]
    classes = [BACKGROUND, *sorted({int(c) for c, vote in zip(class_ids, votes, strict=True) if vote is not None})]
    if len(classes) == 1:
        return [None] * len(votes)
    probs, allowed = _vote_map(
        superpixels, boxes_xyxy, windows, class_ids, classes, votes, static_map=static_map, log_probs=log_probs
    )
    refined = dense_crf(image, np.log(probs / probs.sum(0)), crf_settings("refine"))
    label_map = np.where(allowed, refined, 0).argmax(0)

    shares: list[NDArray[np.float64] | None] = []
    for (x0, y0, x1, y1), class_id, vote in zip(windows, class_ids.tolist(), votes, strict=True):
        if vote is None:
            shares.append(None)
            continue
        ids = superpixels[y0:y1, x0:x1].ravel()
        given = (label_map[y0:y1, x0:x1] == classes.index(class_id)).ravel()
        size = np.bincount(ids, minlength=len(vote))
        shares.append(np.bincount(ids, weights=given, minlength=len(vote)) / np.maximum(size, 1))
    return shares


def find_cut(share: NDArray[np.float64], limit: float | None) -> NDArray[np.uint16]:
    """Superpixels that the refined outline cuts: as segments are unions of superpixels, a part of each is wrong.

    Args:
        share: (S,), of the pixels of each superpixel inside the box, the share that belongs to the box's class.
        limit: Share of the pixels, in 0..1, up to which the smaller part is not minded; None: none is.

    Returns:
        Ids, ascending: those whose both parts are larger than `limit`.
    """
    if limit is None:
        return np.array([], np.uint16)
    return np.flatnonzero((share > limit) & (share < 1 - limit)).astype(np.uint16)


def _vote_map(
    superpixels: NDArray[np.uint16],
    boxes_xyxy: NDArray[np.float32],
    windows: Sequence[tuple[int, int, int, int]],
    class_ids: NDArray[np.int32],
    classes: list[int],
    votes: Sequence[NDArray[np.float64] | None],
    *,
    static_map: NDArray[np.uint8] | None,
    log_probs: NDArray[np.float32] | None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What all voters of `refine_segments` say, (L, H, W) for the L `classes`: probabilities, and where each may be."""
    height, width = superpixels.shape
    # The network's probabilities as if no other classes existed.
    predicted = None if log_probs is None else softmax(log_probs[classes], axis=0)
    probs = np.zeros((len(classes), height, width), np.float32)
    allowed = np.zeros(probs.shape, bool)
    allowed[0] = True
    for k in front_order(boxes_xyxy):  # a smaller box takes what it wants; the boxes behind it keep the rest
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
    return np.where(allowed, np.clip(probs, MIN_PROBABILITY, 1), OUTSIDE_PROBABILITY), allowed
