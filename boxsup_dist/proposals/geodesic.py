"""Geodesic distances between superpixels, and their critical levels (Kraehenbuehl and Koltun, ECCV 2014).

The geodesic distance of two superpixels is the smallest sum of border weights along a path between them. The
superpixels, in order of their distance from a seed, grow a region around the seed; each size of the region is a level.
A level is critical if its contour lies on stronger boundaries than those of the levels of similar area. All properties
of the regions are running sums, so no mask is drawn.

Shapes: E pairs of neighbours, T orders, L levels, N regions, Q sums along a border.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.proposals.compiled import compiled


class Neighbours(NamedTuple):
    """The neighbours of every superpixel: those of superpixel s are the entries indptr[s]:indptr[s + 1]."""

    indptr: NDArray[np.int64]  # (S + 1,)
    others: NDArray[np.int64]  # (2 E,), the neighbour
    pair: NDArray[np.int64]  # (2 E,), index of the pair in the graph


def neighbours(pairs: NDArray[np.int32], num_superpixels: int) -> Neighbours:
    """Return the neighbour lists of a graph with the pairs (E, 2)."""
    both = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int64)
    order = np.lexsort((both[:, 1], both[:, 0]))
    indptr = np.searchsorted(both[order, 0], np.arange(num_superpixels + 1))
    return Neighbours(indptr, both[order, 1], order % max(len(pairs), 1))


@compiled
def distances(sources: NDArray[np.int64], near: Neighbours, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the geodesic distance (S,) of every superpixel from the nearest source, by the weights (E,) of the pairs.

    A superpixel that no path reaches has an infinite distance.
    """
    out = np.full(len(near.indptr) - 1, np.inf)
    heap = [(0.0, sources[0]) for _ in range(0)]
    for source in sources:
        out[source] = 0.0
        heapq.heappush(heap, (0.0, source))
    while heap:
        so_far, s = heapq.heappop(heap)
        if so_far > out[s]:
            continue
        for i in range(near.indptr[s], near.indptr[s + 1]):
            there = so_far + weights[near.pair[i]]
            if there < out[near.others[i]]:
                out[near.others[i]] = there
                heapq.heappush(heap, (there, near.others[i]))
    return out


@compiled
def place_seeds(
    first: int, num_seeds: int, near: Neighbours, weights: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Place seeds by farthest point sampling: after `first`, each is the superpixel farthest from all before it.

    Returns:
        The seeds (N,), N <= num_seeds because no superpixel is taken twice, and the distances from each seed (N, S).
    """
    num_seeds = min(num_seeds, len(near.indptr) - 1)
    seeds = np.empty(num_seeds, np.int64)
    maps = np.empty((num_seeds, len(near.indptr) - 1))
    nearest = np.full(len(near.indptr) - 1, np.inf)
    seed = first
    for k in range(num_seeds):
        seeds[k] = seed
        maps[k] = distances(seeds[k : k + 1], near, weights)
        nearest = np.minimum(nearest, maps[k])
        nearest[seed] = -1.0  # below every distance, also below the 0 of other superpixels: it is not taken again
        seed = int(np.argmax(nearest))
    return seeds, maps


class Superpixels(NamedTuple):
    """The quantities of superpixels that regions add up."""

    sizes: NDArray[np.int64]  # (S,), pixels
    extents: NDArray[np.int32]  # (S, 4), tight boxes
    hashes: NDArray[np.uint64]  # (S,), see hierarchy.superpixel_hashes
    borders: NDArray[np.float64]  # (E, Q), sums along each pair's border: its pixels, the boundary strength, and others


class Regions(NamedTuple):
    """Properties of N regions."""

    areas: NDArray[np.float64]  # (N,), pixels
    boxes: NDArray[np.int32]  # (N, 4), tight
    hashes: NDArray[np.uint64]  # (N,), sums modulo 2^64
    outer: NDArray[np.float64]  # (N, Q), sums of the borders along the contour, without the image's own border
    inner: NDArray[np.float64]  # (N, Q), sums of all borders inside


@compiled
def _empty_regions(count: int, num_sums: int) -> Regions:
    """Return uninitialised memory for `count` regions."""
    areas, boxes, hashes = np.empty(count), np.empty((count, 4), np.int32), np.empty(count, np.uint64)
    return Regions(areas, boxes, hashes, np.empty((count, num_sums)), np.empty((count, num_sums)))


@compiled
def grow(order: NDArray[np.int64], superpixels: Superpixels, near: Neighbours, out: Regions) -> None:
    """Fill `out` with the regions of the first 1, 2, ..., S superpixels of an order (S,)."""
    sizes, extents, hashes, borders = superpixels
    inside = np.zeros(len(order), np.bool_)
    area, total_hash, box = 0.0, np.uint64(0), extents[order[0]].copy()
    contour, within = np.zeros(borders.shape[1]), np.zeros(borders.shape[1])
    for k in range(len(order)):
        s = order[k]
        inside[s] = True
        area += sizes[s]
        total_hash += hashes[s]
        for c in range(2):
            box[c] = min(box[c], extents[s, c])
            box[c + 2] = max(box[c + 2], extents[s, c + 2])
        for i in range(near.indptr[s], near.indptr[s + 1]):
            e = near.pair[i]
            sign = -1.0 if inside[near.others[i]] else 1.0
            for q in range(borders.shape[1]):
                contour[q] += sign * borders[e, q]
                within[q] += (0.5 - 0.5 * sign) * borders[e, q]
        out.areas[k], out.boxes[k], out.hashes[k] = area, box, total_hash
        out.outer[k], out.inner[k] = contour, within


@compiled
def critical_levels(values: NDArray[np.float64], areas: NDArray[np.float64], ratio: float) -> NDArray[np.int64]:
    """Return the indices k where values[k] is the largest value whose area is within a factor `ratio` of areas[k].

    `values` and `areas` are (S,), and areas rise.
    """
    count = len(values)
    out, found = np.empty(count, np.int64), 0
    # The queue holds the indices of the window that no later one exceeds, the largest value first: a sliding maximum
    # in linear time.
    queue, head, tail, high = np.empty(count, np.int64), 0, 0, 0
    for k in range(count):
        while high < count and areas[high] <= areas[k] * ratio:
            while tail > head and values[queue[tail - 1]] < values[high]:
                tail -= 1
            queue[tail] = high
            tail += 1
            high += 1
        while areas[queue[head]] * ratio < areas[k]:
            head += 1
        if values[k] >= values[queue[head]]:
            out[found] = k
            found += 1
    return out[:found]


class Levels(NamedTuple):
    """Critical levels of several orders: level i is the first `ends[i]` superpixels of order `orders[i]`."""

    orders: NDArray[np.int64]  # (L,)
    ends: NDArray[np.int64]  # (L,)
    regions: Regions  # of the levels, N = L


@compiled
def find_levels(orders: NDArray[np.int64], superpixels: Superpixels, near: Neighbours, ratio: float) -> Levels:
    """Find the critical levels of every order (T, S), by the mean boundary strength along the contour."""
    num_orders, num_superpixels = orders.shape
    num_sums = superpixels.borders.shape[1]
    grown = _empty_regions(num_superpixels, num_sums)
    found = _empty_regions(orders.size, num_sums)  # memory that is never written to takes no space
    which, ends = np.empty(orders.size, np.int64), np.empty(orders.size, np.int64)
    values, count = np.empty(num_superpixels), 0
    for t in range(num_orders):
        grow(orders[t], superpixels, near, grown)
        for k in range(num_superpixels):
            length, strength = grown.outer[k, 0], grown.outer[k, 1]
            values[k] = strength / length if length > 0.5 else 0.0
        for k in critical_levels(values, grown.areas, ratio):
            which[count], ends[count] = t, k + 1
            found.areas[count], found.boxes[count], found.hashes[count] = (
                grown.areas[k],
                grown.boxes[k],
                grown.hashes[k],
            )
            found.outer[count], found.inner[count] = grown.outer[k], grown.inner[k]
            count += 1
    kept = Regions(
        found.areas[:count].copy(), found.boxes[:count].copy(), found.hashes[:count].copy(),
        found.outer[:count].copy(), found.inner[:count].copy(),
    )  # fmt: skip
    return Levels(which[:count].copy(), ends[:count].copy(), kept)


def join_levels(parts: Sequence[Levels], num_orders: Sequence[int]) -> Levels:
    """Join the levels of several sets of orders, numbering the orders set after set; `num_orders` has each set's T."""
    starts = np.cumsum([0, *num_orders])
    orders = np.concatenate([part.orders + start for part, start in zip(parts, starts, strict=False)])
    ends = np.concatenate([part.ends for part in parts])
    regions = zip(*(part.regions for part in parts), strict=True)
    return Levels(orders, ends, Regions(*(np.concatenate(values) for values in regions)))


@compiled
def gather_levels(
    orders: NDArray[np.int64], rows: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """Return the membership (indptr, indices) of P levels: segment j is the superpixels `orders[rows[j], :ends[j]]`."""
    indptr = np.zeros(len(rows) + 1, np.int64)
    indptr[1:] = np.cumsum(ends)
    indices = np.empty(indptr[-1], np.uint16)
    for j in range(len(rows)):
        indices[indptr[j] : indptr[j + 1]] = orders[rows[j], : ends[j]]
    return indptr, indices
