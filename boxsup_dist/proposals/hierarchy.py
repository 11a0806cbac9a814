"""Region hierarchies over one shared set of superpixels, and the segments that are their nodes.

A hierarchy is a `parents` array (int32, one entry a node): nodes 0..S-1 are the superpixels, a parent has a larger
number than its children, the last node is the root and its own parent. Laid out depth first, the superpixels of every
node are one slice of the layout's order, so areas, hashes and memberships of all nodes are differences of cumulative
sums: no mask is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np


@dataclass(frozen=True)
class Layout:
    """A hierarchy of M nodes laid out: node v holds the superpixels `order[start[v]:end[v]]`."""

    parents: np.ndarray  # int32 (M,)
    order: np.ndarray  # int32 (S,)
    start: np.ndarray  # int32 (M,)
    end: np.ndarray  # int32 (M,)

    def sums(self, per_superpixel: np.ndarray) -> np.ndarray:
        """Sum of a quantity over the superpixels of every node: (S,) to (M,), of the same integer type."""
        running = np.zeros(len(self.order) + 1, per_superpixel.dtype)
        np.cumsum(per_superpixel[self.order], out=running[1:])
        return running[self.end] - running[self.start]

    def boxes(self, extents: np.ndarray) -> np.ndarray:
        """Tight box of every node, int32 (M, 4) xyxy, from the superpixels' boxes (S, 4)."""
        return _boxes(self.parents, extents.astype(np.int32))


@numba.njit(cache=True)
def _ranges(parents: np.ndarray, num_superpixels: int) -> tuple[np.ndarray, np.ndarray]:
    num_nodes = len(parents)
    size = np.zeros(num_nodes, np.int32)
    size[:num_superpixels] = 1
    for node in range(num_nodes - 1):
        size[parents[node]] += size[node]
    start = np.zeros(num_nodes, np.int32)
    filled = np.zeros(num_nodes, np.int32)
    for node in range(num_nodes - 2, -1, -1):
        parent = parents[node]
        start[node] = start[parent] + filled[parent]
        filled[parent] += size[node]
    return start, start + size


@numba.njit(cache=True)
def _boxes(parents: np.ndarray, extents: np.ndarray) -> np.ndarray:
    out = np.empty((len(parents), 4), np.int32)
    out[:, :2] = np.iinfo(np.int32).max
    out[:, 2:] = 0
    out[: len(extents)] = extents
    for node in range(len(parents) - 1):
        for i in range(2):
            out[parents[node], i] = min(out[parents[node], i], out[node, i])
            out[parents[node], i + 2] = max(out[parents[node], i + 2], out[node, i + 2])
    return out


def lay_out(parents: np.ndarray, num_superpixels: int) -> Layout:
    """Depth-first layout of a hierarchy."""
    start, end = _ranges(parents, num_superpixels)
    order = np.empty(num_superpixels, np.int32)
    order[start[:num_superpixels]] = np.arange(num_superpixels, dtype=np.int32)
    return Layout(parents, order, start, end)


def parents_of_merges(groups: np.ndarray, merges: np.ndarray) -> np.ndarray:
    """The `parents` array of a binary grouping that starts from groups of superpixels.

    `groups` is the group of every superpixel, int (S,), numbered 0..R-1; `merges` is int (R - 1, 2), merge i making
    region R + i. A group of one superpixel is that superpixel itself.
    """
    num_superpixels, num_groups = len(groups), len(merges) + 1
    sizes = np.bincount(groups, minlength=num_groups)
    wide = np.flatnonzero(sizes > 1)
    first_merge = num_superpixels + len(wide)
    num_nodes = first_merge + len(merges)
    node_of_region = np.empty(num_groups + len(merges), np.int32)
    node_of_region[groups] = np.arange(num_superpixels)
    node_of_region[wide] = np.arange(num_superpixels, first_merge)
    node_of_region[num_groups:] = np.arange(first_merge, num_nodes)
    parents = np.arange(num_nodes, dtype=np.int32)
    in_wide = sizes[groups] > 1
    parents[:num_superpixels][in_wide] = node_of_region[groups[in_wide]]
    for side in (0, 1):
        parents[node_of_region[merges[:, side]]] = node_of_region[num_groups:]
    return parents


def superpixel_hashes(num_superpixels: int) -> np.ndarray:
    """A fixed 64-bit number per superpixel, uint64 (S,); a set's hash is their sum modulo 2^64.

    Two different sets out of n collide with a probability of about n^2 / 2^65, 1e-11 for 20,000 candidates.
    """
    return np.random.default_rng(0).integers(0, 2**64, num_superpixels, np.uint64)


def unique_nodes(layouts: Sequence[Layout]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The different superpixel sets among the nodes of several hierarchies.

    Returns for each its hierarchy and node (int64), its position (int64: 0 the root, 1 the last merge before it, ...;
    that of the hierarchy where it comes first) and the number of hierarchies that hold it.
    """
    hashes = superpixel_hashes(len(layouts[0].order))
    set_hash = np.concatenate([layout.sums(hashes) for layout in layouts])
    trees = np.concatenate([np.full(len(layout.parents), t) for t, layout in enumerate(layouts)])
    nodes = np.concatenate([np.arange(len(layout.parents)) for layout in layouts])
    positions = np.concatenate([np.arange(len(layout.parents))[::-1] for layout in layouts])
    order = np.lexsort((trees, positions))
    _, first, copies = np.unique(set_hash[order], return_index=True, return_counts=True)
    chosen = order[first]
    return trees[chosen], nodes[chosen], positions[chosen], copies


@numba.njit(cache=True)
def _gather(
    orders: np.ndarray, trees: np.ndarray, nodes: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.zeros(len(trees) + 1, np.int64)
    for j in range(len(trees)):
        indptr[j + 1] = indptr[j]
        for node in nodes[j]:
            if node >= 0:
                indptr[j + 1] += end[node] - start[node]
    indices = np.empty(indptr[-1], np.uint16)
    for j in range(len(trees)):
        filled = indptr[j]
        for node in nodes[j]:
            if node >= 0:
                indices[filled : filled + end[node] - start[node]] = orders[trees[j], start[node] : end[node]]
                filled += end[node] - start[node]
    return indptr, indices


def gather_members(layouts: Sequence[Layout], trees: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Membership of the segments (tree, node): indptr int64 (P + 1,) and superpixel ids uint16, in any order.

    `nodes` is (P,), or (P, N) for unions of up to N disjoint nodes, -1 where there are fewer.
    """
    orders = np.stack([layout.order for layout in layouts])
    base = np.cumsum([0] + [len(layout.parents) for layout in layouts])[:-1]
    nodes = nodes.reshape(len(trees), -1)
    flat = np.where(nodes >= 0, base[trees][:, None] + nodes, -1)
    start = np.concatenate([layout.start for layout in layouts])
    end = np.concatenate([layout.end for layout in layouts])
    return _gather(orders, trees.astype(np.int64), flat, start, end)
