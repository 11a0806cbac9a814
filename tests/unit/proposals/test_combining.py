"""Combinatorial grouping against partitions split step by step, all connected sets of parts listed."""

import itertools

import numpy as np
import pytest

from boxsup_dist.proposals import combining, hierarchy


def random_graph(num_regions: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Merges of neighbouring regions in a random connected graph; pairs, lengths and contrast of its borders."""
    rng = np.random.default_rng(seed)
    chain = {(i, i + 1) for i in range(num_regions - 1)}
    extra = {p for p in itertools.combinations(range(num_regions), 2) if rng.random() < 0.15}
    pairs = np.array(sorted(chain | extra), np.int32).reshape(-1, 2)
    regions = {i: {i} for i in range(num_regions)}
    merges = []
    while len(regions) > 1:
        near = [p for p in itertools.combinations(sorted(regions), 2) if touch(regions[p[0]], regions[p[1]], pairs)]
        a, b = near[rng.integers(len(near))]
        regions[num_regions + len(merges)] = regions.pop(a) | regions.pop(b)
        merges.append((a, b))
    lengths, contrast = rng.integers(1, 20, len(pairs)).astype(float), rng.random(len(pairs))
    return np.array(merges, np.int32).reshape(-1, 2), pairs, lengths, contrast


def touch(one: set[int], two: set[int], pairs: np.ndarray) -> bool:
    return any((a in one and b in two) or (a in two and b in one) for a, b in pairs.tolist())


def leaves_of_nodes(merges: np.ndarray) -> list[frozenset[int]]:
    sets = [frozenset({i}) for i in range(len(merges) + 1)]
    for a, b in merges:
        sets.append(sets[a] | sets[b])
    return sets


def plain(merges: np.ndarray, pairs: np.ndarray, max_steps: tuple[int, ...]) -> dict[frozenset[int], int]:
    """Every candidate's set of leaves and the step that it first appears in."""
    sets = leaves_of_nodes(merges)
    found = {sets[-1]: 0}
    partition = [len(sets) - 1]
    for step in range(1, len(merges) + 1):
        node = max(partition)
        partition.remove(node)
        partition += merges[node - len(merges) - 1].tolist()
        for num_parts, limit in enumerate(max_steps, 1):
            for parts in itertools.combinations(partition, num_parts) if step <= limit else ():
                near = {p for p in itertools.combinations(parts, 2) if touch(sets[p[0]], sets[p[1]], pairs)}
                if len(near) >= num_parts - 1:  # of up to three parts these connect them all
                    found.setdefault(frozenset().union(*(sets[part] for part in parts)), step)
    return found


@pytest.mark.parametrize("max_steps", [(99, 99, 99), (99, 6, 3), (5, 5), (7,), (99, 0, 0)])
@pytest.mark.parametrize("num_regions", [1, 2, 3, 13])
def test_all_connected_sets_of_each_partition_once(num_regions, max_steps):
    merges, pairs, lengths, contrast = random_graph(num_regions, num_regions)
    found = combining.combine(merges, pairs, lengths, contrast, max_steps)
    sets = leaves_of_nodes(merges)
    unions = [frozenset().union(*(sets[node] for node in nodes if node >= 0)) for nodes in found.nodes.tolist()]
    assert len(set(unions)) == len(unions)
    assert dict(zip(unions, found.steps.tolist(), strict=True)) == plain(merges, pairs, max_steps)


@pytest.mark.parametrize("seed", range(3))
def test_borders_are_those_of_the_union(seed):
    merges, pairs, lengths, contrast = random_graph(14, seed)
    found = combining.combine(merges, pairs, lengths, contrast, (99, 99, 99))
    sets = leaves_of_nodes(merges)
    for j, nodes in enumerate(found.nodes.tolist()):
        parts = [sets[node] for node in nodes if node >= 0]
        if len(parts) == 1 and nodes[0] >= 14:  # a region counts its own last merge as what is inside
            parts = [sets[child] for child in merges[nodes[0] - 14]]
        union = frozenset().union(*parts)
        around = [(a in union) != (b in union) for a, b in pairs.tolist()]
        part_of = {leaf: k for k, part in enumerate(parts) for leaf in part}
        within = [a in union and b in union and part_of[a] != part_of[b] for a, b in pairs.tolist()]
        assert found.length[j] == pytest.approx(lengths[around].sum())
        for value, where in ((found.outer[j], around), (found.inner[j], within)):
            expected = np.average(contrast[where], weights=lengths[where]) if any(where) else 0
            assert value == pytest.approx(expected, abs=1e-4)


def test_pool_holds_every_set_once_with_its_sums():
    graphs = [random_graph(11, seed) for seed in (3, 3, 4)]
    _, pairs, lengths, contrast = graphs[0]
    trees = [graph[0] for graph in graphs[:2]] + [chain_merges(11)]
    layouts = [hierarchy.lay_out(hierarchy.parents_of_merges(np.arange(11), merges), 11) for merges in trees]
    found = [combining.combine(merges, pairs, lengths, contrast, (99, 6)) for merges in trees]
    rng = np.random.default_rng(0)
    sizes, low = rng.integers(5, 50, 11), rng.integers(0, 40, (11, 2))
    extents = np.concatenate([low, low + rng.integers(1, 9, (11, 2))], 1)
    pool = combining.pool_together(layouts, found, sizes, extents)
    unions: dict[frozenset[int], list[tuple[int, int]]] = {}
    for t, (merges, combinations) in enumerate(zip(trees, found, strict=True)):
        sets = leaves_of_nodes(merges)
        for nodes, step in zip(combinations.nodes.tolist(), combinations.steps.tolist(), strict=True):
            union = frozenset().union(*(sets[node] for node in nodes if node >= 0))
            unions.setdefault(union, []).append((step, t))
    indptr, indices = hierarchy.gather_members(layouts, pool.trees, pool.nodes)
    pooled = [frozenset(indices[indptr[j] : indptr[j + 1]].tolist()) for j in range(len(pool.trees))]
    assert len(set(pooled)) == len(pooled) and set(pooled) == set(unions)
    assert (np.diff(pool.steps) >= 0).all()
    for j, union in enumerate(pooled):
        members = sorted(union)
        assert pool.steps[j] == min(unions[union])[0] and pool.copies[j] == len(unions[union])
        assert pool.areas[j] == sizes[members].sum()
        assert pool.boxes[j].tolist() == [*extents[members, :2].min(0), *extents[members, 2:].max(0)]


def chain_merges(num_regions: int) -> np.ndarray:
    """Regions joined in the order of their numbers."""
    return np.array([(i if i == 0 else num_regions + i - 1, i + 1) for i in range(num_regions - 1)], np.int32)
