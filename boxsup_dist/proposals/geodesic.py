"""Geodesic distances between superpixels, and their level sets (Kraehenbuehl and Koltun, ECCV 2014).

A distance is the smallest sum of border weights on a way from superpixel to superpixel. Superpixels in order of their
distance from a seed grow a region around it; where its contour lies on strong boundaries, the level is critical.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numba
import numpy as np


class Neighbours(NamedTuple):
    """Every superpixel's neighbours: those of s are entries indptr[s] to indptr[s + 1]."""

    indptr: np.ndarray  # int64 (S + 1,)
    others: np.ndarray  # int64 (2 E,)
    pair: np.ndarray  # int64 (2 E,), the pair of the graph that an entry belongs to


def neighbours(pairs: np.ndarray, num_superpixels: int) -> Neighbours:
    """Neighbour lists of a graph, `pairs` int (E, 2)."""
    both = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int64)
    order = np.lexsort((both[:, 1], both[:, 0]))
    indptr = np.searchsorted(both[order, 0], np.arange(num_superpixels + 1))
    return Neighbours(indptr, both[order, 1], order % max(len(pairs), 1))


@numba.njit(cache=True)
def distances(sources: np.ndarray, near: Neighbours, weights: np.ndarray) -> np.ndarray:
    """Geodesic distance of every superpixel from the nearest of `sources`, float64 (S,); `weights` (E,) per pair."""
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


@numba.njit(cache=True)
def place_seeds(first: int, num_seeds: int, near: Neighbours, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Seeds by farthest point sampling: each is the superpixel farthest from all before it, `first` being the first.

    Returns the seeds, int64 (N,), N <= num_seeds as no superpixel is taken twice, and the distances from each,
    float64 (N, S).
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
        nearest[seed] = -1.0  # of superpixels at distance 0 from each other one may be a seed before the next is far
        seed = int(np.argmax(nearest))
    return seeds, maps


@numba.njit(cache=True)
def contours(
    order: np.ndarray, sizes: np.ndarray, near: Neighbours, lengths: np.ndarray, strength: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of the first 1, 2, ... superpixels of an order the area and the mean boundary strength around, float64 (S,) each.

    `lengths` (E,) are the pixels along each pair's border and `strength` (E,) its mean boundary strength.
    """
    count = len(order)
    inside = np.zeros(count, np.bool_)
    area, outer = np.empty(count), np.empty(count)
    total_area = total_length = total_strength = 0.0
    for k in range(count):
        s = order[k]
        inside[s] = True
        total_area += sizes[s]
        for i in range(near.indptr[s], near.indptr[s + 1]):
            e = near.pair[i]
            sign = -1.0 if inside[near.others[i]] else 1.0
            total_length += sign * lengths[e]
            total_strength += sign * lengths[e] * strength[e]
        area[k] = total_area
        outer[k] = total_strength / total_length if total_length > 0.5 else 0.0
    return area, outer


@numba.njit(cache=True)
def critical_levels(values: np.ndarray, area: np.ndarray, ratio: float) -> np.ndarray:
    """Places k where values[k] is the largest of all that have an area within a factor `ratio` of area[k], int64."""
    out = np.empty(len(values), np.int64)
    count, low, high = 0, 0, 0
    for k in range(len(values)):
        while area[low] * ratio < area[k]:
            low += 1
        while high < len(values) and area[high] <= area[k] * ratio:
            high += 1
        if values[k] >= values[low:high].max():
            out[count] = k
            count += 1
    return out[:count]


class Levels(NamedTuple):
    """Critical levels of several orders of the superpixels: the first `ends` superpixels of order `orders`."""

    orders: np.ndarray  # int64 (L,)
    ends: np.ndarray  # int64 (L,)
    outer: np.ndarray  # float64 (L,), mean boundary strength along the contour, without the image's own border


@numba.njit(cache=True)
def find_levels(
    orders: np.ndarray, sizes: np.ndarray, near: Neighbours, lengths: np.ndarray, strength: np.ndarray, ratio: float
) -> Levels:
    """Critical levels of every order, int64 (T, S), by the mean boundary strength along the contour."""
    which, ends, outer = [0 for _ in range(0)], [0 for _ in range(0)], [0.0 for _ in range(0)]
    for t in range(len(orders)):
        area, mean = contours(orders[t], sizes, near, lengths, strength)
        for k in critical_levels(mean, area, ratio):
            which.append(t)
            ends.append(k + 1)
            outer.append(mean[k])
    return Levels(np.array(which), np.array(ends), np.array(outer))
