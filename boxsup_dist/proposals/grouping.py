"""Greedy hierarchical grouping of a region graph (Uijlings et al., IJCV 2013, algorithm 1).

The similarity of two neighbouring regions is a weighted sum of their likeness in colour and texture, of their
smallness, of how well they fill their common box, and of the weakness of their border. The border alone gives the
average-linkage tree of a contour map.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numba
import numpy as np
import scipy.sparse

SIMILARITIES = "ctsfb"  # colour, texture, size, fill, border: the order of the weights


class RegionFeatures(NamedTuple):
    """What the similarities need of R regions and of E pairs of neighbours."""

    sizes: np.ndarray  # float64 (R,) pixels
    boxes: np.ndarray  # int32 (R, 4) xyxy half-open
    colour: np.ndarray  # float32 (R, D), L1-normalised histograms
    texture: np.ndarray  # float32 (R, T), L1-normalised histograms
    pairs: np.ndarray  # int32 (E, 2), smaller region first; together they connect all regions
    lengths: np.ndarray  # float64 (E,), pixels of the border
    contrast: np.ndarray  # float64 (E,), mean contrast along the border, 0 to 1


class _Grown(NamedTuple):
    """Features of the regions and of those still to be merged, 2 R - 1 rows."""

    sizes: np.ndarray
    boxes: np.ndarray
    colour: np.ndarray
    texture: np.ndarray


class _Lists(NamedTuple):
    """Neighbour lists as linked entries, so that two are joined in constant time.

    Entry 2 e + side belongs to region pairs[e, side] and names the other one.
    """

    entry: np.ndarray  # int64 (2 E,), the neighbour
    following: np.ndarray  # int32 (2 E,), the list's next entry, -1 at its end
    lengths: np.ndarray  # float64 (2 E,)
    contrast: np.ndarray  # float64 (2 E,), summed over the border
    head: np.ndarray  # int32 (2 R - 1,), a region's first entry
    tail: np.ndarray  # int32 (2 R - 1,)
    current: np.ndarray  # int64 (2 R - 1,), a region that has absorbed this one, itself while it lives


@numba.njit(cache=True)
def _similarity(a: int, b: int, contrast: float, grown: _Grown, weights: np.ndarray, image_size: float) -> float:
    sizes, boxes, colour, texture = grown
    total = weights[4] * (1.0 - contrast)
    if weights[0] != 0.0:
        shared = 0.0
        for i in range(colour.shape[1]):
            shared += min(colour[a, i], colour[b, i])
        total += weights[0] * shared
    if weights[1] != 0.0:
        shared = 0.0
        for i in range(texture.shape[1]):
            shared += min(texture[a, i], texture[b, i])
        total += weights[1] * shared
    both = sizes[a] + sizes[b]
    total += weights[2] * (1.0 - both / image_size)
    if weights[3] != 0.0:
        width = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
        height = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
        total += weights[3] * (1.0 - (width * height - both) / image_size)
    return total


@numba.njit(cache=True)
def _absorb(a: int, b: int, new: int, grown: _Grown) -> None:
    sizes, boxes, colour, texture = grown
    sizes[new] = sizes[a] + sizes[b]
    share_a, share_b = np.float32(sizes[a] / sizes[new]), np.float32(sizes[b] / sizes[new])
    for i in range(colour.shape[1]):
        colour[new, i] = share_a * colour[a, i] + share_b * colour[b, i]
    for i in range(texture.shape[1]):
        texture[new, i] = share_a * texture[a, i] + share_b * texture[b, i]
    for i in range(2):
        boxes[new, i] = min(boxes[a, i], boxes[b, i])
        boxes[new, i + 2] = max(boxes[a, i + 2], boxes[b, i + 2])


@numba.njit(cache=True)
def _grow(values: np.ndarray) -> np.ndarray:
    out = np.zeros((2 * len(values) - 1, values.shape[1]), values.dtype)
    out[: len(values)] = values
    return out


@numba.njit(cache=True)
def _link(pairs: np.ndarray, lengths: np.ndarray, contrast: np.ndarray, num_nodes: int) -> _Lists:
    entry = np.empty(2 * len(pairs), np.int64)
    following = np.full(2 * len(pairs), -1, np.int32)
    head = np.full(num_nodes, -1, np.int32)
    tail = np.full(num_nodes, -1, np.int32)
    for i in range(2 * len(pairs)):
        region = pairs[i // 2, i % 2]
        entry[i] = pairs[i // 2, 1 - i % 2]
        following[i] = head[region]
        if head[region] < 0:
            tail[region] = i
        head[region] = i
    doubled, summed = np.repeat(lengths, 2), np.repeat(lengths * contrast, 2)
    return _Lists(entry, following, doubled, summed, head, tail, np.arange(num_nodes))


@numba.njit(cache=True)
def _join_lists(a: int, b: int, new: int, lists: _Lists, place: np.ndarray) -> None:
    """Neighbour list of `new` from those of a and b: every neighbour once, borders added up. `place` is scratch, -1."""
    entry, following, current = lists.entry, lists.following, lists.current
    current[a] = current[b] = new
    following[lists.tail[a]] = lists.head[b]
    i, last = lists.head[a], -1
    while i >= 0:
        other = entry[i]
        while current[other] != other:
            current[other] = current[current[other]]
            other = current[other]
        if other != new and place[other] < 0:
            place[other] = i
            entry[i] = other
            if last < 0:
                lists.head[new] = i
            else:
                following[last] = i
            last = i
        elif other != new:
            lists.lengths[place[other]] += lists.lengths[i]
            lists.contrast[place[other]] += lists.contrast[i]
        i = following[i]
    lists.tail[new] = last
    if last >= 0:
        following[last] = -1
    i = lists.head[new]
    while i >= 0:
        place[entry[i]] = -1
        i = following[i]


@numba.njit(cache=True)
def _group(
    sizes: np.ndarray,
    boxes: np.ndarray,
    colour: np.ndarray,
    texture: np.ndarray,
    pairs: np.ndarray,
    lengths: np.ndarray,
    contrast: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    num_regions = len(sizes)
    grown = _Grown(_grow(sizes.reshape(-1, 1))[:, 0], _grow(boxes), _grow(colour), _grow(texture))
    lists = _link(pairs, lengths, contrast, 2 * num_regions - 1)
    place = np.full(2 * num_regions - 1, -1, np.int32)
    image_size = sizes.sum()
    heap = [(0.0, 0, 0) for _ in range(0)]
    for e in range(len(pairs)):
        a, b = pairs[e, 0], pairs[e, 1]
        heap.append((-_similarity(a, b, contrast[e], grown, weights, image_size), a, b))
    heapq.heapify(heap)
    merges = np.empty((num_regions - 1, 2), np.int32)
    new = num_regions
    while new < 2 * num_regions - 1:
        _, a, b = heapq.heappop(heap)
        if lists.current[a] != a or lists.current[b] != b:
            continue
        merges[new - num_regions, 0], merges[new - num_regions, 1] = a, b
        _absorb(a, b, new, grown)
        _join_lists(a, b, new, lists, place)
        i = lists.head[new]
        while i >= 0:
            other = lists.entry[i]
            border = lists.contrast[i] / lists.lengths[i]
            heapq.heappush(heap, (-_similarity(other, new, border, grown, weights, image_size), other, new))
            i = lists.following[i]
        new += 1
    return merges


def group(features: RegionFeatures, weights: np.ndarray) -> np.ndarray:
    """Merge the two most similar neighbouring regions until one is left.

    `weights` are those of SIMILARITIES, float64 (5,). Of equally similar pairs the one with the lowest region numbers
    goes first. Returns int32 (R - 1, 2): merge i makes region R + i of two earlier ones.
    """
    pairs = features.pairs.astype(np.int64)  # what the heap holds must be of one type
    return _group(*features._replace(pairs=pairs), weights)


def merged_features(features: RegionFeatures, groups: np.ndarray) -> RegionFeatures:
    """The features of groups of regions; `groups` is the group of every region, int (R,), all numbers 0..G-1 used."""
    num_groups = int(groups.max()) + 1
    sizes = np.bincount(groups, features.sizes, num_groups)
    members = scipy.sparse.csr_matrix(
        (features.sizes / sizes[groups], (groups, np.arange(len(groups)))), (num_groups, len(groups))
    )
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(num_groups))
    low = np.minimum.reduceat(features.boxes[order, :2], starts)
    high = np.maximum.reduceat(features.boxes[order, 2:], starts)
    pairs = np.sort(groups[features.pairs].astype(np.int64), 1)
    apart = pairs[:, 0] != pairs[:, 1]
    keys, inverse = np.unique(pairs[apart, 0] * num_groups + pairs[apart, 1], return_inverse=True)
    lengths = np.bincount(inverse, features.lengths[apart], len(keys))
    summed = np.bincount(inverse, (features.lengths * features.contrast)[apart], len(keys))
    return RegionFeatures(
        sizes,
        np.concatenate([low, high], 1),
        (members @ features.colour).astype(np.float32),
        (members @ features.texture).astype(np.float32),
        np.stack([keys // num_groups, keys % num_groups], 1).astype(np.int32),
        lengths,
        summed / lengths,
    )
