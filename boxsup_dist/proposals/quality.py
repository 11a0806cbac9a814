"""Proposal quality: the best Jaccard index that a set of proposals reaches on ground-truth objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from boxsup_dist.schema import Proposals


def jaccard(proposals: Proposals, mask: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Jaccard index of every proposal with an object, float64 (P,), from pixel counts per superpixel.

    `mask` is bool (H, W); pixels outside `valid` (bool (H, W), VOC's void ones) are counted nowhere.
    """
    count = proposals.num_superpixels
    flat = proposals.superpixels.ravel()
    valid = np.ones(mask.shape, bool) if valid is None else valid
    area = np.bincount(flat[valid.ravel()], minlength=count)
    inside = np.bincount(flat[(mask & valid).ravel()], minlength=count)
    counts = np.stack([area, inside], 1).astype(np.float64)
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(proposals.indices)), proposals.indices.astype(np.int32), proposals.indptr),
        (len(proposals), count),
    )
    sums = matrix @ counts
    union = sums[:, 0] + inside.sum() - sums[:, 1]
    return sums[:, 1] / np.maximum(union, 1)


def best_jaccard(
    proposals: Proposals, mask: np.ndarray, valid: np.ndarray | None = None, cuts: Sequence[int] = ()
) -> np.ndarray:
    """Best Jaccard index among the first n proposals for every n of `cuts`, and among all; float64 (len(cuts) + 1,)."""
    running = np.maximum.accumulate(np.append(0.0, jaccard(proposals, mask, valid)))
    return running[np.minimum([*cuts, len(proposals)], len(proposals))]
