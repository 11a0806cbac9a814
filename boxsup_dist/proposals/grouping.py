"""Greedy hierarchical grouping of a region graph (Uijlings et al., IJCV 2013, algorithm 1).

The similarity of two neighbouring regions is a weighted sum of five terms: they have similar colours, have similar
textures, are small, fill their common box, and have a weak border between them. The border term alone gives the
average-linkage tree of a contour map.

Shapes: R regions at the start, 2 R - 1 after all merges, E pairs of neighbours, D and T bins of a histogram.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from boxsup_dist.proposals.compiled import compiled


class RegionFeatures(NamedTuple):
    """The features of R regions and of their E pairs of neighbours, from which similarities are computed."""

    sizes: NDArray[np.float64]  # (R,), pixels
    boxes: NDArray[np.int32]  # (R, 4), tight
    colour: NDArray[np.float32]  # (R, D), L1-normalised histograms
    texture: NDArray[np.float32]  # (R, T), L1-normalised histograms
    pairs: NDArray[np.int32]  # (E, 2), smaller region first; together the pairs connect all regions
    lengths: NDArray[np.float64]  # (E,), pixels of the border
    contrast: NDArray[np.float64]  # (E,), mean contrast along the border, 0 to 1


class _Grown(NamedTuple):
    """Features of the regions with room for the merged ones, 2 R - 1 rows."""

    sizes: NDArray[np.float64]
    boxes: NDArray[np.int32]
    colour: NDArray[np.float32]
    texture: NDArray[np.float32]


class _Lists(NamedTuple):
    """The neighbours of every region as linked lists, so that two lists are joined in constant time.

    Entry 2 e + side belongs to region pairs[e, side] and names the other region of the pair.
    """

    entry: NDArray[np.int64]  # (2 E,), the neighbour
    following: NDArray[np.int32]  # (2 E,), next entry of the list; -1 at its end
    lengths: NDArray[np.float64]  # (2 E,), pixels of the border
    contrast: NDArray[np.float64]  # (2 E,), contrast summed along the border
    head: NDArray[np.int32]  # (2 R - 1,), first entry of the region's list
    tail: NDArray[np.int32]  # (2 R - 1,), last entry
    current: NDArray[np.int64]  # (2 R - 1,), a region that absorbed this one; itself if it is not merged yet


@compiled
def _similarity(
    a: int, b: int, contrast: float, grown: _Grown, weights: NDArray[np.float64], image_size: float
) -> float:
    """Return the similarity of two regions with this mean contrast along their border."""
    sizes, boxes, colour, texture = grown
    total: float = weights[4] * (1.0 - contrast)
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


@compiled
def _absorb(a: int, b: int, new: int, grown: _Grown) -> None:
    """Set the features of `new`, the union of a and b."""
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


@compiled
def _grow(values: NDArray[Any]) -> NDArray[Any]:
    """Copy values (R, D) into an array of 2 R - 1 rows."""
    out = np.zeros((2 * len(values) - 1, values.shape[1]), values.dtype)
    out[: len(values)] = values
    return out


@compiled
def _link(
    pairs: NDArray[np.int64], lengths: NDArray[np.float64], contrast: NDArray[np.float64], num_nodes: int
) -> _Lists:
    """Return the neighbour lists of the regions at the start."""
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


@compiled
def _join_lists(a: int, b: int, new: int, lists: _Lists, place: NDArray[np.int32]) -> None:
    """Join the neighbour lists of a and b to that of `new`: every neighbour once, with its borders added up.

    `place` (2 R - 1,) is scratch memory, -1 before and after.
    """
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


@compiled
def _group(
    sizes: NDArray[np.float64],
    boxes: NDArray[np.int32],
    colour: NDArray[np.float32],
    texture: NDArray[np.float32],
    pairs: NDArray[np.int64],
    lengths: NDArray[np.float64],
    contrast: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> NDArray[np.int32]:
    """Do the work of `group`; Numba takes the features one by one."""
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


def group(features: RegionFeatures, weights: NDArray[np.float64]) -> NDArray[np.int32]:
    """Merge the two most similar neighbouring regions until one region is left.

    Of equally similar pairs the one with the lowest region numbers is merged first.

    Args:
        features: The R regions.
        weights: (5,), weight of each of SIMILARITIES.

    Returns:
        Merges (R - 1, 2): merge i joins two earlier regions to region R + i.
    """
    sizes, boxes, colour, texture, pairs, lengths, contrast = features
    merges: NDArray[np.int32] = _group(
        sizes, boxes, colour, texture, pairs.astype(np.int64), lengths, contrast, weights
    )  # int64 pairs, because all numbers in the heap must have one type
    return merges


def merged_features(features: RegionFeatures, groups: NDArray[np.integer]) -> RegionFeatures:
    """Return the features of groups of regions; `groups` (R,) uses all of the numbers 0..G-1."""
    num_groups = int(groups.max()) + 1
    sizes = np.asarray(np.bincount(groups, features.sizes, num_groups), np.float64)
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
    lengths = np.asarray(np.bincount(inverse, features.lengths[apart], len(keys)), np.float64)
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
