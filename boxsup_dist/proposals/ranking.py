"""The order of candidates: best first, near-duplicates last."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True)
def _overlaps_kept(
    mark: np.ndarray,
    area: float,
    kept: np.ndarray,
    areas: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    sizes: np.ndarray,
    limit: float,
) -> bool:
    for other in kept:
        if areas[other] < limit * area or area < limit * areas[other]:
            continue  # the smaller area over the larger bounds the Jaccard index
        shared = 0
        for t in range(indptr[other], indptr[other + 1]):
            if mark[indices[t]]:
                shared += sizes[indices[t]]
        if shared > limit * (area + areas[other] - shared):
            return True
    return False


@numba.njit(cache=True)
def _suppress(
    indptr: np.ndarray, indices: np.ndarray, sizes: np.ndarray, areas: np.ndarray, limit: float, max_kept: int
) -> np.ndarray:
    num_candidates = len(indptr) - 1
    mark = np.zeros(len(sizes), np.bool_)
    is_kept = np.zeros(num_candidates, np.bool_)
    kept = np.empty(min(num_candidates, max_kept), np.int64)
    count = 0
    for j in range(num_candidates):
        if count == max_kept:
            break
        mark[indices[indptr[j] : indptr[j + 1]]] = True
        if not _overlaps_kept(mark, areas[j], kept[:count], areas, indptr, indices, sizes, limit):
            kept[count] = j
            count += 1
            is_kept[j] = True
        mark[indices[indptr[j] : indptr[j + 1]]] = False
    return is_kept


def suppress_duplicates(
    indptr: np.ndarray, indices: np.ndarray, sizes: np.ndarray, limit: float, max_candidates: int
) -> np.ndarray:
    """Greedy suppression: the first `max_candidates` after moving near-duplicates behind all others, int64 indices.

    Candidates come best first, as membership (indptr (P + 1,), superpixel ids); `sizes` are the superpixels' pixels,
    int64 (S,). A candidate is a near-duplicate if its Jaccard index with an earlier one that is none exceeds `limit`.
    """
    if len(indptr) == 1:
        return np.empty(0, np.int64)
    areas = np.add.reduceat(sizes[indices], indptr[:-1]).astype(np.float64)
    is_kept = _suppress(indptr, indices, sizes, areas, limit, max_candidates)
    return np.argsort(~is_kept, kind="stable")[:max_candidates]


def take(indptr: np.ndarray, indices: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chosen rows of a membership, in their order: indptr and superpixel ids."""
    lengths = indptr[rows + 1] - indptr[rows]
    out = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    source = np.arange(out[-1]) + np.repeat(indptr[rows] - out[:-1], lengths)
    return out, indices[source]
