"""Nodes of random hierarchies against sets collected by walking up from every superpixel."""

import numpy as np
import pytest

from boxsup_dist.proposals import hierarchy


def random_hierarchy(num_superpixels: int, num_groups: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random groups and a random binary tree over them."""
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(num_groups), rng.integers(0, num_groups, num_superpixels - num_groups)])
    alive, merges = list(range(num_groups)), []
    for new in range(num_groups, 2 * num_groups - 1):
        a, b = sorted(rng.choice(len(alive), 2, replace=False))
        merges.append((alive[a], alive.pop(b)))
        alive[a] = new
    return rng.permutation(groups), np.array(merges, np.int32).reshape(-1, 2)


def sets_by_walking(parents: np.ndarray, num_superpixels: int) -> list[set[int]]:
    members: list[set[int]] = [set() for _ in parents]
    for superpixel in range(num_superpixels):
        node = superpixel
        members[node].add(superpixel)
        while parents[node] != node:
            node = parents[node]
            members[node].add(superpixel)
    return members


@pytest.mark.parametrize(("num_superpixels", "num_groups"), [(1, 1), (2, 1), (5, 5), (40, 12), (40, 40)])
def test_layout_holds_every_node_as_a_slice(num_superpixels, num_groups):
    parents = hierarchy.parents_of_merges(*random_hierarchy(num_superpixels, num_groups, 1))
    layout = hierarchy.lay_out(parents, num_superpixels)
    expected = sets_by_walking(parents, num_superpixels)
    quantity = np.random.default_rng(2).integers(1, 100, num_superpixels)
    low = np.random.default_rng(3).integers(0, 50, (num_superpixels, 2))
    extents = np.concatenate([low, low + 1 + low[::-1] % 7], 1)
    boxes = layout.boxes(extents)
    for node, members in enumerate(expected):
        assert set(layout.order[layout.start[node] : layout.end[node]]) == members
        assert layout.sums(quantity)[node] == sum(quantity[s] for s in members)
        of_members = extents[sorted(members)]
        assert boxes[node].tolist() == [*of_members[:, :2].min(0), *of_members[:, 2:].max(0)]
    assert expected[-1] == set(range(num_superpixels))
    assert len({frozenset(m) for m in expected}) == len(expected), "no node repeats another's set"


def test_groups_and_merges_are_nodes():
    groups, merges = random_hierarchy(30, 8, 3)
    sets = sets_by_walking(hierarchy.parents_of_merges(groups, merges), 30)
    regions = [set(np.flatnonzero(groups == g)) for g in range(8)]
    for a, b in merges:
        regions.append(regions[a] | regions[b])
    assert all(region in sets for region in regions)


def test_unique_nodes_and_their_members():
    trees = [random_hierarchy(25, groups, seed) for groups, seed in ((25, 4), (9, 5), (25, 4), (1, 6))]
    layouts = [hierarchy.lay_out(hierarchy.parents_of_merges(*tree), 25) for tree in trees]
    tree, node, position, copies = hierarchy.unique_nodes(layouts)
    indptr, indices = hierarchy.gather_members(layouts, tree, node)
    found = [tuple(sorted(indices[indptr[j] : indptr[j + 1]].tolist())) for j in range(len(tree))]
    everything: dict[tuple[int, ...], list[int]] = {}
    for layout in layouts:
        for v, members in enumerate(sets_by_walking(layout.parents, 25)):
            everything.setdefault(tuple(sorted(members)), []).append(len(layout.parents) - 1 - v)
    assert len(set(found)) == len(found) and set(found) == set(everything)
    assert [min(everything[members]) for members in found] == position.tolist()
    assert [len(everything[members]) for members in found] == copies.tolist()


def test_members_of_unions():
    layouts = [hierarchy.lay_out(hierarchy.parents_of_merges(*random_hierarchy(25, 25, seed)), 25) for seed in (7, 8)]
    sets = [sets_by_walking(layout.parents, 25) for layout in layouts]
    trees, nodes = np.array([1, 0, 1]), np.array([[3, -1, -1], [47, 46, -1], [1, 24, 0]])
    nodes[1] = [*np.flatnonzero(layouts[0].parents[:-1] == 48), -1]
    indptr, indices = hierarchy.gather_members(layouts, trees, nodes)
    for j in range(3):
        expected = set().union(*(sets[trees[j]][node] for node in nodes[j] if node >= 0))
        assert sorted(indices[indptr[j] : indptr[j + 1]].tolist()) == sorted(expected)
