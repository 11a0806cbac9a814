"""Proposal quality: the best Jaccard index that candidates reach on ground-truth objects. No mask is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from boxsup_dist.schema import Proposals


def jaccard(proposals: Proposals, masks: Sequence[np.ndarray], valid: np.ndarray | None = None) -> np.ndarray:
    """Jaccard index of every candidate with every object, float64 (P, K), from pixel counts per superpixel.

    `masks` are K bool (H, W) arrays; pixels outside `valid`, bool (H, W), count nowhere (VOC's void ones). An object
    without a valid pixel has an index of 0.
    """
    num_superpixels = proposals.num_superpixels
    counted = np.ones(proposals.superpixels.shape, bool) if valid is None else valid
    parts = [counted, *(mask & counted for mask in masks)]
    counts = [np.bincount(proposals.superpixels[part], minlength=num_superpixels) for part in parts]
    ones = np.ones(len(proposals.indices))
    membership = scipy.sparse.csr_matrix(
        (ones, proposals.indices.astype(np.int64), proposals.indptr), (len(proposals), num_superpixels)
    )
    sums = membership @ np.stack(counts, 1).astype(np.float64)
    shared = sums[:, 1:]
    union = sums[:, :1] + np.array([int(part.sum()) for part in parts[1:]]) - shared
    return shared / np.maximum(union, 1)


def best_jaccard(
    proposals: Proposals, masks: Sequence[np.ndarray], cuts: Sequence[int], valid: np.ndarray | None = None
) -> np.ndarray:
    """Best Jaccard index of every object among the first n candidates for every n of `cuts`, float64 (K, len(cuts)).

    0 where there is no candidate.
    """
    indices = np.concatenate([np.zeros((1, len(masks))), jaccard(proposals, masks, valid)])
    return np.maximum.accumulate(indices)[np.minimum(cuts, len(proposals))].T


def recall(best: np.ndarray, threshold: float) -> np.ndarray:
    """Share of objects whose best Jaccard index reaches `threshold`: (K, ...) to (...)."""
    return (best >= threshold).mean(0)


def lone_boxes(boxes_xyxy: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """Boxes that meet no other box of their class, bool (K,): there a class mask inside the box is one object."""
    low = np.maximum(boxes_xyxy[:, None, :2], boxes_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], boxes_xyxy[None, :, 2:])
    meet = (high > low).all(-1) & (class_ids[:, None] == class_ids[None])
    np.fill_diagonal(meet, False)
    return ~meet.any(1)
