"""Near-duplicates among candidates: the candidates that overlap a better one too much are dropped or moved to the end.

The overlap is the Jaccard index, the shared pixels over the pixels of the union.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.proposals.compiled import compiled
from boxsup_dist.proposals.membership import Membership

_WORD = 64  # superpixels per word of a candidate's bits


@compiled
def _describe(
    indptr: NDArray[np.int64], indices: NDArray[np.uint16], sizes: NDArray[np.int64], extents: NDArray[np.int32]
) -> tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.int32]]:
    """Return every candidate's superpixels as bits (P, S / 64), its number of pixels (P,) and its tight box (P, 4)."""
    count = len(indptr) - 1
    bits = np.zeros((count, (len(sizes) + _WORD - 1) // _WORD), np.uint64)
    areas = np.zeros(count, np.float64)
    boxes = np.empty((count, 4), np.int32)
    for j in range(count):
        boxes[j] = extents[indices[indptr[j]]]
        for member in indices[indptr[j] : indptr[j + 1]]:
            bits[j, member // _WORD] |= np.uint64(1) << np.uint64(member % _WORD)
            areas[j] += sizes[member]
            for i in range(2):
                boxes[j, i] = min(boxes[j, i], extents[member, i])
                boxes[j, i + 2] = max(boxes[j, i + 2], extents[member, i + 2])
    return bits, areas, boxes


@compiled
def _boxes_allow(a: NDArray[np.int32], b: NDArray[np.int32], shared: float) -> bool:
    """Return whether two boxes have at least `shared` pixels in common."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return bool(width > 0 and height > 0 and width * height >= shared)


@compiled
def _holds(whole: NDArray[np.uint64], part: NDArray[np.uint64], sizes: NDArray[np.int64], may_lack: float) -> bool:
    """Return whether at most `may_lack` pixels of the superpixels `part` lie outside `whole`; both are bits."""
    for w in range(len(part)):
        lacking = part[w] & ~whole[w]
        while lacking != 0:
            lowest = lacking & (~lacking + np.uint64(1))
            may_lack -= sizes[_WORD * w + math.frexp(float(lowest))[1] - 1]  # exact for a power of two
            if may_lack < 0:
                return False
            lacking ^= lowest
    return may_lack >= 0


@compiled
def _survivors(
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint16],
    sizes: NDArray[np.int64],
    extents: NDArray[np.int32],
    limit: float,
    max_kept: int,
) -> NDArray[np.int64]:
    bits, areas, boxes = _describe(indptr, indices, sizes, extents)
    kept = np.empty(min(len(areas), max_kept), np.int64)
    count = 0
    # Kept candidates stand in lists by the logarithm of their area to the base 1 / limit. The Jaccard index is at most
    # the smaller area over the larger, so near-duplicates are in one list or in two neighbouring lists.
    group = np.empty(len(areas), np.int64)
    for j in range(len(areas)):
        group[j] = 1 + int(np.log(areas[j]) / -np.log(limit)) if 0 < limit < 1 else 1
    newest = np.full(group.max() + 2, -1, np.int64)
    older = np.empty(len(kept), np.int64)
    for j in range(len(areas)):
        if count == len(kept):
            break
        is_duplicate = False
        for g in range(group[j] - 1, group[j] + 2):
            place = newest[g]
            while place >= 0 and not is_duplicate:
                other = kept[place]
                needed = limit / (1 + limit) * (areas[j] + areas[other])  # shared pixels at this Jaccard index
                if _boxes_allow(boxes[j], boxes[other], needed):
                    is_duplicate = _holds(bits[j], bits[other], sizes, areas[other] - np.floor(needed) - 1)
                place = older[place]
        if not is_duplicate:
            kept[count] = j
            older[count] = newest[group[j]]
            newest[group[j]] = count
            count += 1
    return kept[:count]


def survivors(
    membership: Membership,
    sizes: NDArray[np.int64],
    extents: NDArray[np.int32],
    limit: float,
    max_kept: int,
) -> NDArray[np.int64]:
    """Suppress near-duplicates greedily, and return the indices of the first `max_kept` survivors, in their order.

    A candidate is a near-duplicate if its Jaccard index with an earlier survivor exceeds `limit`.

    Args:
        membership: The P candidates, best first; without candidates the result is empty.
        sizes: (S,), pixels of every superpixel.
        extents: (S, 4), tight box of every superpixel.
        limit: Largest allowed Jaccard index, 0 to 1.
        max_kept: Stop after this many survivors.
    """
    indptr, indices = membership
    if len(indptr) == 1:
        return np.empty(0, np.int64)
    kept: NDArray[np.int64] = _survivors(indptr, indices, sizes, extents.astype(np.int32), limit, max_kept)
    return kept


def suppress_duplicates(
    membership: Membership,
    sizes: NDArray[np.int64],
    extents: NDArray[np.int32],
    limit: float,
    max_candidates: int,
) -> NDArray[np.int64]:
    """Move near-duplicates behind all other candidates, and return the indices of the first `max_candidates`.

    The arguments are those of `survivors`.
    """
    is_kept = np.zeros(len(membership.indptr) - 1, bool)
    is_kept[survivors(membership, sizes, extents, limit, max_candidates)] = True
    return np.argsort(~is_kept, kind="stable")[:max_candidates]
