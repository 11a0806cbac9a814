"""The order of candidates: best first, near-duplicates last."""

from __future__ import annotations

import numba
import numpy as np

from boxsup_dist.regions import union_boxes


@numba.njit(cache=True)
def _boxes_allow(a: np.ndarray, b: np.ndarray, shared: float) -> bool:
    """Whether two boxes have so many pixels in common."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width > 0 and height > 0 and width * height >= shared


@numba.njit(cache=True)
def _share(mark: np.ndarray, members: np.ndarray, sizes: np.ndarray, may_lack: float) -> bool:
    """Whether of `members` no more than `may_lack` pixels are unmarked."""
    for member in members:
        if may_lack < 0:
            return False
        if not mark[member]:
            may_lack -= sizes[member]
    return may_lack >= 0


@numba.njit(cache=True)
def _survivors(
    indptr: np.ndarray,
    indices: np.ndarray,
    sizes: np.ndarray,
    areas: np.ndarray,
    boxes: np.ndarray,
    limit: float,
    max_kept: int,
) -> np.ndarray:
    mark = np.zeros(len(sizes), np.bool_)
    kept = np.empty(min(len(areas), max_kept), np.int64)
    count = 0
    # Kept candidates in lists by the logarithm of their area to the base 1 / limit: as the smaller area over the larger
    # bounds the Jaccard index, near-duplicates lie in one list or in two neighbouring ones.
    group = np.empty(len(areas), np.int64)
    for j in range(len(areas)):
        group[j] = 1 + int(np.log(areas[j]) / -np.log(limit)) if 0 < limit < 1 else 1
    newest = np.full(group.max() + 2, -1, np.int64)
    older = np.empty(len(kept), np.int64)
    for j in range(len(areas)):
        if count == len(kept):
            break
        mark[indices[indptr[j] : indptr[j + 1]]] = True
        is_duplicate = False
        for g in range(group[j] - 1, group[j] + 2):
            place = newest[g]
            while place >= 0 and not is_duplicate:
                other = kept[place]
                needed = limit / (1 + limit) * (areas[j] + areas[other])  # pixels shared at that Jaccard index
                if _boxes_allow(boxes[j], boxes[other], needed):
                    members = indices[indptr[other] : indptr[other + 1]]
                    is_duplicate = _share(mark, members, sizes, areas[other] - np.floor(needed) - 1)
                place = older[place]
        if not is_duplicate:
            kept[count] = j
            older[count] = newest[group[j]]
            newest[group[j]] = count
            count += 1
        mark[indices[indptr[j] : indptr[j + 1]]] = False
    return kept[:count]


def survivors(
    membership: tuple[np.ndarray, np.ndarray], sizes: np.ndarray, extents: np.ndarray, limit: float, max_kept: int
) -> np.ndarray:
    """Greedy suppression: the first max_kept candidates that are no near-duplicates, int64 indices.

    Candidates come best first, as membership (indptr (P + 1,), superpixel ids); `sizes` and `extents` are the
    superpixels' pixels, int64 (S,), and boxes (S, 4). A candidate is a near-duplicate if its Jaccard index with an
    earlier one that is none exceeds `limit`.
    """
    indptr, indices = membership
    if len(indptr) == 1:
        return np.empty(0, np.int64)
    areas = np.add.reduceat(sizes[indices], indptr[:-1]).astype(np.float64)
    return _survivors(indptr, indices, sizes, areas, union_boxes(extents, indptr, indices), limit, max_kept)


def suppress_duplicates(
    membership: tuple[np.ndarray, np.ndarray], sizes: np.ndarray, extents: np.ndarray, limit: float, max_candidates: int
) -> np.ndarray:
    """The first `max_candidates` after moving near-duplicates behind all others; arguments as those of `survivors`."""
    is_kept = np.zeros(len(membership[0]) - 1, bool)
    is_kept[survivors(membership, sizes, extents, limit, max_candidates)] = True
    return np.argsort(~is_kept, kind="stable")[:max_candidates]


def take(indptr: np.ndarray, indices: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chosen rows of a membership, in their order: indptr and superpixel ids."""
    lengths = indptr[rows + 1] - indptr[rows]
    out = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    source = np.arange(out[-1]) + np.repeat(indptr[rows] - out[:-1], lengths)
    return out, indices[source]
