"""Selective Search's hierarchical grouping (Uijlings et al., IJCV 2013, algorithm 1) on a region graph."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numba
import numpy as np


class RegionFeatures(NamedTuple):
    """What the similarities need of every region."""

    sizes: np.ndarray  # float64 (R,) pixels
    boxes: np.ndarray  # int32 (R, 4) xyxy half-open
    colour: np.ndarray  # float32 (R, D), L1-normalised histograms
    texture: np.ndarray  # float32 (R, T), L1-normalised histograms


@numba.njit(cache=True)
def _similarity(
    a: int,
    b: int,
    sizes: np.ndarray,
    boxes: np.ndarray,
    colour: np.ndarray,
    texture: np.ndarray,
    weights: np.ndarray,
    image_size: float,
) -> float:
    total = 0.0
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
    if weights[2] != 0.0:
        total += weights[2] * (1.0 - both / image_size)
    if weights[3] != 0.0:
        width = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
        height = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
        total += weights[3] * (1.0 - (width * height - both) / image_size)
    return total


@numba.njit(cache=True)
def _absorb(
    a: int, b: int, new: int, sizes: np.ndarray, boxes: np.ndarray, colour: np.ndarray, texture: np.ndarray
) -> None:
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
def _extend(values: np.ndarray, extra: int) -> np.ndarray:
    out = np.zeros((len(values) + extra, values.shape[1]), values.dtype)
    out[: len(values)] = values
    return out


@numba.njit(cache=True)
def _link_neighbours(pairs: np.ndarray, num_nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Neighbour lists as linked entries, so that two lists are joined in constant time: entry, next, head, tail."""
    entry = np.empty(2 * len(pairs), np.int32)
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
    return entry, following, head, tail


@numba.njit(cache=True)
def _group(
    sizes_in: np.ndarray,
    boxes_in: np.ndarray,
    colour_in: np.ndarray,
    texture_in: np.ndarray,
    pairs: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    num_regions = len(sizes_in)
    num_nodes = 2 * num_regions - 1
    boxes = _extend(boxes_in, num_regions - 1)
    colour = _extend(colour_in, num_regions - 1)
    texture = _extend(texture_in, num_regions - 1)
    sizes = np.zeros(num_nodes, np.float64)
    sizes[:num_regions] = sizes_in
    image_size = sizes_in.sum()
    merges = np.empty((num_regions - 1, 2), np.int32)
    entry, following, head, tail = _link_neighbours(pairs, num_nodes)
    current = np.arange(num_nodes)  # the region that has absorbed this one, found by following
    seen = np.full(num_nodes, -1, np.int32)
    heap = [(0.0, 0, 0) for _ in range(0)]
    for e in range(len(pairs)):
        a, b = int(pairs[e, 0]), int(pairs[e, 1])
        heap.append((-_similarity(a, b, sizes, boxes, colour, texture, weights, image_size), a, b))
    heapq.heapify(heap)
    new = num_regions
    while new < num_nodes:
        _, a, b = heapq.heappop(heap)
        if current[a] != a or current[b] != b:
            continue
        merges[new - num_regions, 0], merges[new - num_regions, 1] = a, b
        current[a] = current[b] = new
        _absorb(a, b, new, sizes, boxes, colour, texture)
        following[tail[a]] = head[b]
        i, last = head[a], -1
        while i >= 0:
            other = entry[i]
            while current[other] != other:
                current[other] = current[current[other]]
                other = current[other]
            if other != new and seen[other] != new:
                seen[other] = new
                entry[i] = other
                if last < 0:
                    head[new] = i
                else:
                    following[last] = i
                last = i
                similarity = _similarity(other, new, sizes, boxes, colour, texture, weights, image_size)
                heapq.heappush(heap, (-similarity, int(other), int(new)))
            i = following[i]
        tail[new] = last
        if last >= 0:
            following[last] = -1
        new += 1
    return merges


def group(features: RegionFeatures, pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Merge the two most similar neighbouring regions until one is left.

    `pairs` are the neighbouring regions, int32 (E, 2), smaller first; they must connect all R regions. `weights` are
    those of the colour, texture, size and fill similarity, float64 (4,). Of equally similar pairs the one with the
    lowest region numbers goes first. Returns int32 (R - 1, 2): merge i makes region R + i of two earlier ones.
    """
    return _group(features.sizes, features.boxes, features.colour, features.texture, pairs, weights)
