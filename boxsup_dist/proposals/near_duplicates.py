"""The order of candidates: best first, near-duplicates last."""

from __future__ import annotations

import math

import numba
import numpy as np

_WORD = 64  # superpixels in a word of a candidate's bits


@numba.njit(cache=True)
def _describe(
    indptr: np.ndarray, indices: np.ndarray, sizes: np.ndarray, extents: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every candidate the superpixels as bits, uint64 (P, S / 64), the pixels (P,) and the tight box (P, 4)."""
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


@numba.njit(cache=True)
def _boxes_allow(a: np.ndarray, b: np.ndarray, shared: float) -> bool:
    """Whether two boxes have so many pixels in common."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width > 0 and height > 0 and width * height >= shared


@numba.njit(cache=True)
def _holds(whole: np.ndarray, part: np.ndarray, sizes: np.ndarray, may_lack: float) -> bool:
    """Whether no more than `may_lack` pixels of the superpixels `part` are outside `whole`, both as bits."""
    for w in range(len(part)):
        lacking = part[w] & ~whole[w]
        while lacking != 0:
            lowest = lacking & (~lacking + np.uint64(1))
            may_lack -= sizes[_WORD * w + math.frexp(float(lowest))[1] - 1]  # a power of two: its exponent is exact
            if may_lack < 0:
                return False
            lacking ^= lowest
    return may_lack >= 0


@numba.njit(cache=True)
def _survivors(
    indptr: np.ndarray, indices: np.ndarray, sizes: np.ndarray, extents: np.ndarray, limit: float, max_kept: int
) -> np.ndarray:
    bits, areas, boxes = _describe(indptr, indices, sizes, extents)
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
        is_duplicate = False
        for g in range(group[j] - 1, group[j] + 2):
            place = newest[g]
            while place >= 0 and not is_duplicate:
                other = kept[place]
                needed = limit / (1 + limit) * (areas[j] + areas[other])  # pixels shared at that Jaccard index
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
    membership: tuple[np.ndarray, np.ndarray], sizes: np.ndarray, extents: np.ndarray, limit: float, max_kept: int
) -> np.ndarray:
    """Greedy suppression: the first max_kept candidates that are no near-duplicates, int64 indices.

    Candidates come best first, as membership: indptr (P + 1,), and superpixel ids in any order; `sizes` and `extents`
    are the superpixels' pixels, int64 (S,), and boxes (S, 4). A candidate is a near-duplicate if its Jaccard index with
    an earlier one that is none exceeds `limit`.
    """
    indptr, indices = membership
    if len(indptr) == 1:
        return np.empty(0, np.int64)
    return _survivors(indptr, indices, sizes, extents.astype(np.int32), limit, max_kept)


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
