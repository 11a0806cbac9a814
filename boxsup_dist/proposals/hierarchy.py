"""Hierarchies of regions over the superpixels of an image; every node of a hierarchy is a segment.

A hierarchy of M nodes is an array `parents`, int32 (M,). Nodes 0..S-1 are the superpixels, a parent has a larger number
than its children, and the last node is the root, which is its own parent. `lay_out` orders the superpixels depth first,
so that the superpixels of every node are one slice of that order. Areas, hashes and memberships of all nodes are then
differences of cumulative sums, and no mask is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.proposals.compiled import compiled
from boxsup_dist.proposals.membership import Membership

_Integer = TypeVar("_Integer", bound=np.integer)


@dataclass(frozen=True)
class Layout:
    """A hierarchy of M nodes, laid out depth first: node v holds the superpixels `order[start[v]:end[v]]`."""

    parents: NDArray[np.int32]  # (M,)
    order: NDArray[np.int32]  # (S,)
    start: NDArray[np.int32]  # (M,)
    end: NDArray[np.int32]  # (M,)

    def sums(self, per_superpixel: NDArray[_Integer]) -> NDArray[_Integer]:
        """Sum integers (S,) over the superpixels of every node: (M,), of the same type, modulo its range."""
        running = np.zeros(len(self.order) + 1, per_superpixel.dtype)
        np.cumsum(per_superpixel[self.order], out=running[1:])
        sums: NDArray[_Integer] = running[self.end] - running[self.start]
        return sums

    def boxes(self, extents: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the tight box (M, 4) of every node from the superpixels' boxes (S, 4)."""
        boxes: NDArray[np.int32] = _boxes(self.parents, extents.astype(np.int32))
        return boxes


@compiled
def _ranges(parents: NDArray[np.int32], num_superpixels: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
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


@compiled
def _boxes(parents: NDArray[np.int32], extents: NDArray[np.int32]) -> NDArray[np.int32]:
    out = np.empty((len(parents), 4), np.int32)
    out[:, :2] = np.iinfo(np.int32).max
    out[:, 2:] = 0
    out[: len(extents)] = extents
    for node in range(len(parents) - 1):
        for i in range(2):
            out[parents[node], i] = min(out[parents[node], i], out[node, i])
            out[parents[node], i + 2] = max(out[parents[node], i + 2], out[node, i + 2])
    return out


def lay_out(parents: NDArray[np.int32], num_superpixels: int) -> Layout:
    """Lay a hierarchy, `parents` (M,), out depth first."""
    start, end = _ranges(parents, num_superpixels)
    order = np.empty(num_superpixels, np.int32)
    order[start[:num_superpixels]] = np.arange(num_superpixels, dtype=np.int32)
    return Layout(parents, order, start, end)


def parents_of_merges(groups: NDArray[np.integer], merges: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the `parents` (M,) of a binary grouping that starts from R groups of superpixels.

    Args:
        groups: (S,), the group of every superpixel, 0..R-1. A group of one superpixel is no node of its own.
        merges: (R - 1, 2); merge i joins two regions to region R + i, and regions 0..R-1 are the groups.
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


def superpixel_hashes(num_superpixels: int) -> NDArray[np.uint64]:
    """Return a fixed random number (S,) per superpixel; the hash of a set is their sum modulo 2^64.

    Some two different sets out of n have the same hash with a probability of about n^2 / 2^65: 1e-11 for n = 20,000.
    """
    return np.random.default_rng(0).integers(0, 2**64, num_superpixels, np.uint64)


class UniqueNodes(NamedTuple):
    """The different sets of superpixels among the nodes of several hierarchies; all arrays are (P,)."""

    trees: NDArray[np.int64]  # the hierarchy of each; if several hold it, the one where its position is smallest
    nodes: NDArray[np.int64]  # its node there
    positions: NDArray[np.int64]  # its position there: 0 for the root, 1 for the last merge before it, ...
    copies: NDArray[np.int64]  # number of hierarchies that hold it


def unique_nodes(layouts: Sequence[Layout]) -> UniqueNodes:
    """Collect the nodes of several hierarchies over the same superpixels, every set of superpixels once."""
    hashes = superpixel_hashes(len(layouts[0].order))
    set_hash = np.concatenate([layout.sums(hashes) for layout in layouts])
    trees = np.concatenate([np.full(len(layout.parents), t) for t, layout in enumerate(layouts)])
    nodes = np.concatenate([np.arange(len(layout.parents)) for layout in layouts])
    positions = np.concatenate([np.arange(len(layout.parents))[::-1] for layout in layouts])
    order = np.lexsort((trees, positions))
    _, first, copies = np.unique(set_hash[order], return_index=True, return_counts=True)
    chosen = order[first]
    return UniqueNodes(trees[chosen], nodes[chosen], positions[chosen], copies)


@compiled
def _gather(
    orders: NDArray[np.int32],
    trees: NDArray[np.int64],
    nodes: NDArray[np.int64],
    start: NDArray[np.int32],
    end: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
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


def gather_members(layouts: Sequence[Layout], trees: NDArray[np.integer], nodes: NDArray[np.integer]) -> Membership:
    """Return the superpixels of segments that are nodes, or unions of disjoint nodes, of hierarchies.

    Args:
        layouts: The hierarchies, over the same superpixels.
        trees: (P,), index of each segment's hierarchy.
        nodes: (P,), each segment's node, or (P, parts), the nodes that it unites; -1 stands for no node.
    """
    orders = np.stack([layout.order for layout in layouts])
    base = np.cumsum([0] + [len(layout.parents) for layout in layouts])[:-1]
    nodes = nodes.reshape(len(trees), -1)
    flat = np.where(nodes >= 0, base[trees][:, None] + nodes, -1)
    start = np.concatenate([layout.start for layout in layouts])
    end = np.concatenate([layout.end for layout in layouts])
    return Membership(*_gather(orders, trees.astype(np.int64), flat, start, end))
