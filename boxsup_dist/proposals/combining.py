"""Combinatorial grouping: joins neighbouring regions of a hierarchy (Arbelaez et al., CVPR 2014, section 5).

A binary hierarchy is split from its root: every step replaces one region of the current partition by its two children.
A step adds as candidates the two children, and every pair and triplet of neighbouring regions of the new partition that
holds one of them. Areas, borders and hashes of a candidate are sums over its parts, so no mask is drawn.

Shapes: R regions at the start, M = 2 R - 1 nodes of the hierarchy, E pairs of neighbours, P candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.proposals.compiled import compiled
from boxsup_dist.proposals.hierarchy import Layout, superpixel_hashes

_Integer = TypeVar("_Integer", bound=np.integer)
MAX_PARTS = 3  # candidates of four parts add almost nothing


class Combinations(NamedTuple):
    """The candidates of one hierarchy: connected sets of up to three regions of one partition, every set once."""

    nodes: NDArray[np.int32]  # (P, 3), the nodes of its parts; -1: fewer parts
    steps: NDArray[np.int32]  # (P,), number of splits after which it appears; 0 for the whole image
    outer: NDArray[np.float32]  # (P,), mean boundary strength along its border
    inner: NDArray[np.float32]  # (P,), mean boundary strength between its parts; of one part, between its children
    length: NDArray[np.float32]  # (P,), pixels of its border, without the image's own border


class _Partition(NamedTuple):
    """The regions of the current partition, one per slot, and the borders between them."""

    node: NDArray[np.int32]  # (slots,)
    length: NDArray[np.float32]  # (slots, slots), pixels of the border; 0: the regions are no neighbours
    strength: NDArray[np.float32]  # (slots, slots), summed boundary strength along the border


@compiled
def _parents(merges: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the parent (M,) of every node; the root is its own parent."""
    num_nodes = 2 * len(merges) + 1
    parents = np.arange(num_nodes)
    for i in range(len(merges)):
        parents[merges[i, 0]] = parents[merges[i, 1]] = len(merges) + 1 + i
    return parents


@compiled
def _borders(
    merges: NDArray[np.int32], pairs: NDArray[np.int32], lengths: NDArray[np.float64], contrast: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the borders of every node, (M, 4).

    The columns are length and summed strength of the border around it, then of the border between its two children.
    """
    parents = _parents(merges)
    out = np.zeros((len(parents), 4))
    for e in range(len(pairs)):
        a, b = pairs[e]
        border = np.array([lengths[e], lengths[e] * contrast[e]])
        out[a, :2] += border
        out[b, :2] += border
        while a != b:  # climb to the node that joins them; parents have larger numbers
            a, b = parents[min(a, b)], max(a, b)
        out[a, 2:] += border
    for i in range(len(merges)):
        new = len(merges) + 1 + i
        out[new, :2] = out[merges[i, 0], :2] + out[merges[i, 1], :2] - 2 * out[new, 2:]
    return out


@compiled
def _partition(
    merges: NDArray[np.int32],
    pairs: NDArray[np.int32],
    lengths: NDArray[np.float64],
    contrast: NDArray[np.float64],
    num_slots: int,
) -> _Partition:
    """Return the partition of `num_slots` regions."""
    parents = _parents(merges)
    num_made = len(parents) + 1 - num_slots  # nodes that exist in this partition or before it
    slot = np.full(num_made, -1)
    node = np.empty(num_slots, np.int32)
    count = 0
    for v in range(num_made):
        if parents[v] >= num_made or parents[v] == v:
            node[count], slot[v] = v, count
            count += 1
    for v in range(num_made - 1, -1, -1):
        if slot[v] < 0:
            slot[v] = slot[parents[v]]
    length = np.zeros((num_slots, num_slots), np.float32)
    strength = np.zeros((num_slots, num_slots), np.float32)
    for e in range(len(pairs)):
        a, b = slot[pairs[e, 0]], slot[pairs[e, 1]]
        if a != b:
            for x, y in ((a, b), (b, a)):
                length[x, y] += lengths[e]
                strength[x, y] += lengths[e] * contrast[e]
    return _Partition(node, length, strength)


@compiled
def _emit(
    out: Combinations,
    count: int,
    step: int,
    a: int,
    b: int,
    c: int,
    partition: _Partition,
    borders: NDArray[np.float64],
) -> int:
    """Store the union of the slots a, b and c (-1: none) as candidate `count`, if `out` has room; return count + 1."""
    if count >= len(out.steps):
        return count + 1
    node, length, strength = partition
    around = borders[node[a], 0] + borders[node[b], 0]
    strong = borders[node[a], 1] + borders[node[b], 1]
    within, within_strong = length[a, b], strength[a, b]
    if c >= 0:
        within += length[a, c] + length[b, c]
        within_strong += strength[a, c] + strength[b, c]
        around += borders[node[c], 0]
        strong += borders[node[c], 1]
    around -= 2 * within
    out.nodes[count, 0] = node[a]
    out.nodes[count, 1] = node[b]
    out.nodes[count, 2] = node[c] if c >= 0 else -1
    out.steps[count] = step
    out.length[count] = around
    out.outer[count] = (strong - 2 * within_strong) / max(around, 1)
    out.inner[count] = within_strong / within
    return count + 1


@compiled
def _emit_with(
    out: Combinations,
    count: int,
    step: int,
    a: int,
    sibling: int,
    num_slots: int,
    max_parts: int,
    partition: _Partition,
    borders: NDArray[np.float64],
) -> int:
    """Store all sets that hold slot `a` but not its sibling; sets with both are candidates of an earlier step."""
    length = partition.length
    near = np.empty(num_slots, np.int64)
    num_near = 0
    for x in range(num_slots):
        if length[a, x] > 0 and x != sibling:
            near[num_near] = x
            num_near += 1
    for i in range(num_near):
        count = _emit(out, count, step, a, near[i], -1, partition, borders)
        if max_parts < 3:
            continue
        for j in range(i):
            count = _emit(out, count, step, a, near[j], near[i], partition, borders)
        for y in range(num_slots):
            if length[near[i], y] > 0 and length[a, y] == 0 and y != a and y != sibling:
                count = _emit(out, count, step, a, near[i], y, partition, borders)
    return count


@compiled
def _join(a: int, b: int, new: int, last: int, partition: _Partition) -> None:
    """Merge slot b into slot a as region `new`, and move slot `last` to slot b."""
    node, length, strength = partition
    node[a] = new
    for values in (length, strength):
        for x in range(last + 1):
            values[a, x] += values[b, x]
            values[x, a] = values[a, x]
        values[a, a] = 0
        for x in range(last + 1):
            values[b, x] = values[last, x]
        values[b, b] = 0
        for x in range(last + 1):
            values[x, b] = values[b, x]
    node[b] = node[last]


@compiled
def _combine(
    out: Combinations,
    merges: NDArray[np.int32],
    limits: NDArray[np.int64],
    partition: _Partition,
    borders: NDArray[np.float64],
) -> int:
    """Store the sets of two and three parts, and return their number; merges the partition down to one region."""
    num_nodes, count = 2 * len(merges) + 1, 0
    slot = np.full(num_nodes, -1)
    slot[partition.node] = np.arange(len(partition.node))
    num_slots = len(partition.node)
    for new in range(num_nodes + 1 - num_slots, num_nodes):
        a, b = slot[merges[new - len(merges) - 1]]
        step = num_nodes - new
        max_parts = 1 + (limits[1:] >= step).sum()
        count = _emit_with(out, count, step, a, b, num_slots, max_parts, partition, borders)
        count = _emit_with(out, count, step, b, a, num_slots, max_parts, partition, borders)
        num_slots -= 1
        _join(a, b, new, num_slots, partition)
        slot[new] = a
        slot[partition.node[b]] = b  # after the line above, because the new region itself may have moved to b
    return count


def _room(num_candidates: int) -> Combinations:
    """Return uninitialised memory for `num_candidates` candidates."""
    floats = [np.empty(num_candidates, np.float32) for _ in range(3)]
    return Combinations(np.empty((num_candidates, MAX_PARTS), np.int32), np.empty(num_candidates, np.int32), *floats)


def _singles(merges: NDArray[np.int32], borders: NDArray[np.float64], max_step: int) -> Combinations:
    """Return the nodes that appear up to a step, as candidates of one part."""
    parents = _parents(merges)
    steps = len(parents) - parents
    steps[-1] = 0
    chosen = np.flatnonzero(steps <= max_step)
    nodes = np.full((len(chosen), MAX_PARTS), -1, np.int32)
    nodes[:, 0] = chosen
    length, strength, within, within_strength = borders[chosen].T
    outer, inner = strength / np.maximum(length, 1), within_strength / np.maximum(within, 1)
    return Combinations(nodes, steps[chosen].astype(np.int32), *(x.astype(np.float32) for x in (outer, inner, length)))


def combine(
    merges: NDArray[np.int32],
    pairs: NDArray[np.int32],
    lengths: NDArray[np.float64],
    contrast: NDArray[np.float64],
    max_steps: Sequence[int],
) -> Combinations:
    """Make all candidates of a binary hierarchy over R regions.

    Args:
        merges: (R - 1, 2); merge i joins two regions to region R + i.
        pairs: (E, 2), neighbouring regions.
        lengths: (E,), pixels along the border of each pair.
        contrast: (E,), mean boundary strength along the border.
        max_steps: Last step that makes candidates of one, of two and of three parts; the numbers must not rise.
    """
    limits = np.array([*max_steps, *[0] * (MAX_PARTS - len(max_steps))])
    assert len(limits) == MAX_PARTS and (np.diff(limits) <= 0).all()
    borders = _borders(merges, pairs, lengths, contrast)
    num_slots = min(int(limits[1]), len(merges)) + 1
    sets = _room(0)
    for _ in range(2):  # the first pass counts them
        partition = _partition(merges, pairs, lengths, contrast, num_slots)
        count = _combine(sets, merges, limits, partition, borders)
        sets = sets if len(sets.steps) == count else _room(count)
    singles = _singles(merges, borders, int(limits[0]))
    return Combinations(*(np.concatenate(both) for both in zip(singles, sets, strict=True)))


class Pool(NamedTuple):
    """The different candidates of several hierarchies over the same superpixels, in the order of their steps."""

    trees: NDArray[np.int64]  # (P,), its hierarchy; if several hold it, the one with the fewest steps
    nodes: NDArray[np.int32]  # (P, 3), its nodes there; -1: fewer parts
    parts: NDArray[np.int64]  # (P,), number of its parts, 1 to 3
    steps: NDArray[np.int32]  # (P,); this and the next three as in Combinations
    outer: NDArray[np.float32]  # (P,)
    inner: NDArray[np.float32]  # (P,)
    length: NDArray[np.float32]  # (P,)
    copies: NDArray[np.int64]  # (P,), number of hierarchies that hold it
    areas: NDArray[np.int64]  # (P,), pixels
    boxes: NDArray[np.int32]  # (P, 4), tight


def pool_together(
    layouts: Sequence[Layout],
    combinations: Sequence[Combinations],
    sizes: NDArray[np.int64],
    extents: NDArray[np.int32],
) -> Pool:
    """Collect the candidates of all hierarchies, every set of superpixels once.

    Args:
        layouts: The hierarchies.
        combinations: The candidates of each hierarchy.
        sizes: (S,), pixels of every superpixel.
        extents: (S, 4), tight box of every superpixel.
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


def _sums(of_nodes: NDArray[_Integer], nodes: NDArray[np.int32]) -> NDArray[_Integer]:
    """Sum a quantity of the nodes (M,) over the nodes (P, parts) of each candidate; -1 adds nothing."""
    sums: NDArray[_Integer] = np.append(of_nodes, of_nodes.dtype.type(0))[nodes].sum(1, dtype=of_nodes.dtype)
    return sums


def _union_boxes(of_nodes: NDArray[np.int32], nodes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the tight box (P, 4) of each candidate from the boxes (M, 4) of the nodes."""
    boxes: NDArray[np.int32] = of_nodes[nodes[:, 0]]
    for i in range(1, nodes.shape[1]):
        others = of_nodes[np.where(nodes[:, i] >= 0, nodes[:, i], nodes[:, 0])]
        boxes[:, :2] = np.minimum(boxes[:, :2], others[:, :2])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], others[:, 2:])
    return boxes
