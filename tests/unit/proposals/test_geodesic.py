"""Geodesic distances and level sets against scipy's shortest paths and sets listed the slow way."""

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.csgraph import shortest_path

from boxsup_dist.proposals import geodesic


def random_graph(num_superpixels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a connected random graph and a weight for each."""
    rng = np.random.default_rng(seed)
    chain = {(i, i + 1) for i in range(num_superpixels - 1)}
    extra = {tuple(sorted(rng.choice(num_superpixels, 2, replace=False).tolist())) for _ in range(num_superpixels)}
    pairs = np.array(sorted(chain | extra), np.int32)
    return pairs, rng.random(len(pairs))


@pytest.mark.parametrize("seed", range(3))
def test_distances_are_shortest_paths(seed):
    pairs, weights = random_graph(30, seed)
    near = geodesic.neighbours(pairs, 30)
    matrix = scipy.sparse.coo_matrix((weights, pairs.T), (30, 30))
    expected = shortest_path(matrix, directed=False)
    for sources in ([3], [0, 17, 29]):
        found = geodesic.distances(np.array(sources), near, weights)
        np.testing.assert_allclose(found, expected[sources].min(0))


@pytest.mark.parametrize("num_seeds", [1, 5, 30, 99])
def test_every_seed_is_the_farthest_from_those_before(num_seeds):
    pairs, weights = random_graph(30, 0)
    near = geodesic.neighbours(pairs, 30)
    seeds, maps = geodesic.place_seeds(4, num_seeds, near, weights)
    assert seeds[0] == 4 and len(set(seeds.tolist())) == len(seeds) == min(num_seeds, 30)
    for k, seed in enumerate(seeds):
        np.testing.assert_allclose(maps[k], geodesic.distances(np.array([seed]), near, weights))
        if k:
            nearest = maps[:k].min(0)
            assert nearest[seed] == nearest.max()


def test_one_superpixel_and_equal_superpixels_have_seeds():
    alone = geodesic.neighbours(np.empty((0, 2), np.int32), 1)
    seeds, maps = geodesic.place_seeds(0, 5, alone, np.empty(0))
    assert seeds.tolist() == [0] and maps.tolist() == [[0]]
    chain = geodesic.neighbours(np.array([[0, 1], [1, 2]], np.int32), 3)
    assert sorted(geodesic.place_seeds(1, 3, chain, np.zeros(2))[0].tolist()) == [0, 1, 2]


def random_superpixels(
    pairs: np.ndarray, strength: np.ndarray, num_superpixels: int, seed: int
) -> geodesic.Superpixels:
    """Superpixels of random sizes, places and borders."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, len(pairs)).astype(float)
    corner = rng.integers(0, 50, (num_superpixels, 2))
    extents = np.concatenate([corner, corner + rng.integers(1, 20, (num_superpixels, 2))], 1).astype(np.int32)
    hashes = rng.integers(0, 2**64, num_superpixels, np.uint64)
    borders = np.stack([lengths, strength * lengths, rng.random(len(pairs))], 1)
    return geodesic.Superpixels(rng.integers(5, 50, num_superpixels), extents, hashes, borders)


def test_levels_are_the_strongest_contours_of_their_size():
    pairs, strength = random_graph(25, 2)
    superpixels = random_superpixels(pairs, strength, 25, seed=1)
    rng = np.random.default_rng(3)
    orders = np.stack([rng.permutation(25) for _ in range(4)])
    found = geodesic.find_levels(orders, superpixels, geodesic.neighbours(pairs, 25), 1.3)
    levels = set(zip(found.orders.tolist(), found.ends.tolist(), strict=True))
    for t, order in enumerate(orders):
        areas = np.cumsum(superpixels.sizes[order])
        outer = []
        for k in range(25):
            length, total, _ = superpixels.borders[np.isin(pairs, order[: k + 1]).sum(1) == 1].sum(0)
            outer.append(total / length if length else 0)
        for k in range(25):
            alike = [j for j in range(25) if areas[k] / 1.3 <= areas[j] <= areas[k] * 1.3]
            assert ((t, k + 1) in levels) == (outer[k] > max(outer[j] for j in alike) - 1e-9)


def test_properties_of_levels_are_those_of_their_superpixels():
    pairs, strength = random_graph(25, 4)
    superpixels = random_superpixels(pairs, strength, 25, seed=5)
    rng = np.random.default_rng(6)
    sets = [np.stack([rng.permutation(25) for _ in range(n)]) for n in (3, 1)]
    near = geodesic.neighbours(pairs, 25)
    found = geodesic.join_levels([geodesic.find_levels(part, superpixels, near, 1.3) for part in sets], [3, 1])
    orders = np.concatenate(sets)
    indptr, indices = geodesic.gather_levels(orders, found.orders, found.ends)
    assert set(found.orders.tolist()) == {0, 1, 2, 3}
    for j, (t, end) in enumerate(zip(found.orders, found.ends, strict=True)):
        members = orders[t, :end]
        assert sorted(indices[indptr[j] : indptr[j + 1]].tolist()) == sorted(members.tolist())
        assert found.regions.areas[j] == superpixels.sizes[members].sum()
        assert found.regions.hashes[j] == superpixels.hashes[members].sum()
        extents = superpixels.extents[members]
        assert found.regions.boxes[j].tolist() == [*extents[:, :2].min(0), *extents[:, 2:].max(0)]
        ends_inside = np.isin(pairs, members).sum(1)
        np.testing.assert_allclose(found.regions.outer[j], superpixels.borders[ends_inside == 1].sum(0), atol=1e-9)
        np.testing.assert_allclose(found.regions.inner[j], superpixels.borders[ends_inside == 2].sum(0), atol=1e-9)


@pytest.mark.parametrize("ratio", [1.0, 1.5, 100.0])
def test_critical_levels_with_equal_values(ratio):
    rng = np.random.default_rng(7)
    values, areas = rng.integers(0, 4, 60).astype(float), np.cumsum(rng.integers(1, 20, 60)).astype(float)
    expected = [
        k for k in range(60) if values[k] == values[(areas * ratio >= areas[k]) & (areas <= areas[k] * ratio)].max()
    ]
    assert geodesic.critical_levels(values, areas, ratio).tolist() == expected
