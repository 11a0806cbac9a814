"""Combinatorial grouping: neighbouring regions of a hierarchy, joined (Arbelaez et al., CVPR 2014, section 5).

A binary hierarchy is split from its root: every step replaces one region of the current partition by its two children.
The candidates that a step adds are the two children, and every pair and triplet of neighbouring regions of the new
partition that holds one of them. Their areas, borders and hashes are sums over their parts: no mask is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np

from boxsup_dist.proposals.hierarchy import Layout, superpixel_hashes

MAX_PARTS = 3  # 4-tuples add next to nothing


class Combinations(NamedTuple):
    """Candidates of one hierarchy: connected sets of up to three regions of one partition; no set twice."""

    nodes: np.ndarray  # int32 (P, 3), nodes of the hierarchy, -1 where there are fewer parts
    steps: np.ndarray  # int32 (P,), splits after which the candidate appears; 0 the whole image
    outer: np.ndarray  # float32 (P,), mean boundary strength between the candidate and what is around it
    inner: np.ndarray  # float32 (P,), mean boundary strength between its parts, of a region between its two children
    length: np.ndarray  # float32 (P,), pixels of the border around it, without the image's own


class _Partition(NamedTuple):
    """Regions of the current partition, one a slot, and the borders between them."""

    node: np.ndarray  # int32 (K,)
    length: np.ndarray  # float32 (K, K), 0 where two regions do not meet
    strength: np.ndarray  # float32 (K, K), summed along the border
    ring: np.ndarray  # float32 (K, 3), length and strength of the whole border, mean strength of that of its children


@numba.njit(cache=True)
def _emit(out: Combinations, count: int, step: int, a: int, b: int, c: int, partition: _Partition) -> int:
    """Store the union of the slots a, b, c (-1: none) as candidate `count`, if there is room for it; count + 1."""
    if count >= len(out.steps):
        return count + 1
    node, length, strength, ring = partition
    around, strong, inner = ring[a, 0], ring[a, 1], ring[a, 2]
    if b >= 0:
        within, within_strong = length[a, b], strength[a, b]
        around += ring[b, 0]
        strong += ring[b, 1]
        if c >= 0:
            within += length[a, c] + length[b, c]
            within_strong += strength[a, c] + strength[b, c]
            around += ring[c, 0]
            strong += ring[c, 1]
        around -= 2 * within
        strong -= 2 * within_strong
        inner = within_strong / within
    out.nodes[count, 0] = node[a]
    out.nodes[count, 1] = node[b] if b >= 0 else -1
    out.nodes[count, 2] = node[c] if c >= 0 else -1
    out.steps[count] = step
    out.length[count] = around
    out.outer[count] = strong / max(around, np.float32(1))
    out.inner[count] = inner
    return count + 1


@numba.njit(cache=True)
def _emit_with(
    out: Combinations,
    count: int,
    step: int,
    a: int,
    sibling: int,
    num_slots: int,
    max_parts: int,
    partition: _Partition,
) -> int:
    """Store all candidates that hold slot `a` and not its sibling; with it they were candidates of an earlier step."""
    length = partition.length
    count = _emit(out, count, step, a, -1, -1, partition)
    if max_parts < 2:
        return count
    near = np.empty(num_slots, np.int64)
    num_near = 0
    for x in range(num_slots):
        if length[a, x] > 0 and x != sibling:
            near[num_near] = x
            num_near += 1
    for i in range(num_near):
        count = _emit(out, count, step, a, near[i], -1, partition)
        if max_parts < 3:
            continue
        for j in range(i):
            count = _emit(out, count, step, a, near[j], near[i], partition)
        for y in range(num_slots):
            if length[near[i], y] > 0 and length[a, y] == 0 and y != a and y != sibling:
                count = _emit(out, count, step, a, near[i], y, partition)
    return count


@numba.njit(cache=True)
def _join(a: int, b: int, new: int, last: int, partition: _Partition) -> None:
    """Merge slot b into slot a as region `new`, and move slot `last` to the freed place."""
    node, length, strength, ring = partition
    ring[a, 2] = strength[a, b] / max(length[a, b], np.float32(1))
    ring[a, 0] += ring[b, 0] - 2 * length[a, b]
    ring[a, 1] += ring[b, 1] - 2 * strength[a, b]
    node[a] = new
    for borders in (length, strength):
        for x in range(last + 1):
            borders[a, x] += borders[b, x]
            borders[x, a] = borders[a, x]
        borders[a, a] = 0
        for x in range(last + 1):
            borders[b, x] = borders[last, x]
        borders[b, b] = 0
        for x in range(last + 1):
            borders[x, b] = borders[b, x]
    node[b] = node[last]
    ring[b] = ring[last]


@numba.njit(cache=True)
def _combine(out: Combinations, merges: np.ndarray, limits: np.ndarray, partition: _Partition) -> int:
    num_regions = len(merges) + 1
    slot = np.arange(2 * num_regions - 1)
    num_slots, count = num_regions, 0
    for new in range(num_regions, 2 * num_regions - 1):
        a, b = slot[merges[new - num_regions, 0]], slot[merges[new - num_regions, 1]]
        step = 2 * num_regions - 1 - new
        max_parts = (limits >= step).sum()
        if max_parts > 0:
            count = _emit_with(out, count, step, a, b, num_slots, max_parts, partition)
            count = _emit_with(out, count, step, b, a, num_slots, max_parts, partition)
        num_slots -= 1
        _join(a, b, new, num_slots, partition)
        slot[new] = a
        slot[partition.node[b]] = b  # after the above: what moved to b may be the new region itself
    return _emit(out, count, 0, 0, -1, -1, partition)


@numba.njit(cache=True)
def _all_apart(pairs: np.ndarray, lengths: np.ndarray, contrast: np.ndarray, num_regions: int) -> _Partition:
    length = np.zeros((num_regions, num_regions), np.float32)
    strength = np.zeros((num_regions, num_regions), np.float32)
    ring = np.zeros((num_regions, 3), np.float32)
    for e in range(len(pairs)):
        for a, b in ((pairs[e, 0], pairs[e, 1]), (pairs[e, 1], pairs[e, 0])):
            length[a, b] = lengths[e]
            strength[a, b] = lengths[e] * contrast[e]
            ring[a, 0] += lengths[e]
            ring[a, 1] += lengths[e] * contrast[e]
    return _Partition(np.arange(num_regions).astype(np.int32), length, strength, ring)


def _room(num_candidates: int) -> Combinations:
    floats = [np.empty(num_candidates, np.float32) for _ in range(3)]
    return Combinations(np.empty((num_candidates, MAX_PARTS), np.int32), np.empty(num_candidates, np.int32), *floats)


def combine(
    merges: np.ndarray, pairs: np.ndarray, lengths: np.ndarray, contrast: np.ndarray, max_steps: Sequence[int]
) -> Combinations:
    """All candidates of a binary hierarchy over R regions.

    `merges` is int32 (R - 1, 2), merge i making region R + i; `pairs`, `lengths` and `contrast` (E,) are the
    neighbouring regions, the pixels along their border and its mean boundary strength. `max_steps` says up to which
    step candidates of one, two and three parts are made; falling numbers.
    """
    limits = np.array(max_steps)
    assert len(limits) <= MAX_PARTS and (np.diff(limits) <= 0).all()
    counted = _combine(_room(0), merges, limits, _all_apart(pairs, lengths, contrast, len(merges) + 1))
    out = _room(counted)
    _combine(out, merges, limits, _all_apart(pairs, lengths, contrast, len(merges) + 1))
    return out


class Pool(NamedTuple):
    """The different candidates of several hierarchies over the same superpixels, in the order of their steps."""

    trees: np.ndarray  # int64 (P,), the hierarchy of each; where several hold it, the one with fewest steps
    nodes: np.ndarray  # int32 (P, 3), its nodes there, -1 where there are fewer parts
    parts: np.ndarray  # int64 (P,)
    steps: np.ndarray  # int32 (P,); these and the following as in Combinations
    outer: np.ndarray  # float32 (P,)
    inner: np.ndarray  # float32 (P,)
    length: np.ndarray  # float32 (P,)
    copies: np.ndarray  # int64 (P,), hierarchies that hold the same set
    areas: np.ndarray  # int64 (P,), pixels
    boxes: np.ndarray  # int32 (P, 4) xyxy


def pool_together(
    layouts: Sequence[Layout], combinations: Sequence[Combinations], sizes: np.ndarray, extents: np.ndarray
) -> Pool:
    """The candidates of all hierarchies, every set once.

    `sizes` (S,) and `extents` (S, 4) are pixels and boxes of the superpixels.
    """
    hashes = superpixel_hashes(len(sizes))
    pairs = list(zip(layouts, combinations, strict=True))
    set_hashes = np.concatenate([_sums(layout.sums(hashes), c.nodes) for layout, c in pairs])
    areas = np.concatenate([_sums(layout.sums(sizes), c.nodes) for layout, c in pairs])
    boxes = np.concatenate([_union_boxes(layout.boxes(extents), c.nodes) for layout, c in pairs])
    trees = np.repeat(np.arange(len(combinations)), [len(c.steps) for c in combinations])
    nodes, steps, outer, inner, length = (np.concatenate(values) for values in zip(*combinations, strict=True))
    parts = (nodes >= 0).sum(1)
    order = np.lexsort((trees, parts, steps))
    _, first, copies = np.unique(set_hashes[order], return_index=True, return_counts=True)
    by_step = np.argsort(first)
    chosen = order[first[by_step]]
    return Pool(
        trees=trees[chosen],
        nodes=nodes[chosen],
        parts=parts[chosen],
        steps=steps[chosen],
        outer=outer[chosen],
        inner=inner[chosen],
        length=length[chosen],
        copies=copies[by_step],
        areas=areas[chosen],
        boxes=boxes[chosen],
    )


def _sums(of_nodes: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Sums of a quantity over the nodes of each candidate; -1 adds nothing."""
    return np.append(of_nodes, of_nodes.dtype.type(0))[nodes].sum(1, dtype=of_nodes.dtype)


def _union_boxes(of_nodes: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    boxes = of_nodes[nodes[:, 0]]
    for i in range(1, nodes.shape[1]):
        others = of_nodes[np.where(nodes[:, i] >= 0, nodes[:, i], nodes[:, 0])]
        boxes[:, :2] = np.minimum(boxes[:, :2], others[:, :2])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], others[:, 2:])
    return boxes
