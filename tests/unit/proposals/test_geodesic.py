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


def test_levels_are_the_strongest_contours_of_their_size():
    pairs, strength = random_graph(25, 2)
    rng = np.random.default_rng(1)
    lengths, sizes = rng.integers(1, 9, len(pairs)).astype(float), rng.integers(5, 50, 25)
    orders = np.stack([rng.permutation(25) for _ in range(4)])
    found = geodesic.find_levels(orders, sizes, geodesic.neighbours(pairs, 25), lengths, strength, 1.3)
    levels = set(zip(found.orders.tolist(), found.ends.tolist(), strict=True))
    for t, order in enumerate(orders):
        area = np.cumsum(sizes[order])
        outer = []
        for k in range(25):
            around = np.isin(pairs, order[: k + 1]).sum(1) == 1
            outer.append(np.average(strength[around], weights=lengths[around]) if around.any() else 0)
        for k in range(25):
            alike = [j for j in range(25) if area[k] / 1.3 <= area[j] <= area[k] * 1.3]
            strongest = outer[k] > max(outer[j] for j in alike) - 1e-9
            assert ((t, k + 1) in levels) == strongest
            if strongest:
                place = next(i for i in range(len(found.ends)) if (found.orders[i], found.ends[i]) == (t, k + 1))
                assert found.outer[place] == pytest.approx(outer[k])
