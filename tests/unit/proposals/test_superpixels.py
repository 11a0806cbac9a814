"""Superpixels: connected, not too small, and a border graph counted the slow way."""

import itertools

import numpy as np
import pytest
from skimage import measure, segmentation

from boxsup_dist.proposals.superpixels import (
    RegionGraph,
    coarsen,
    felzenszwalb,
    overlay,
    reduce,
    region_graph,
    smooth,
    watershed,
)
from tests.unit.proposals.pictures import blobs


def connected_regions(labels: np.ndarray) -> int:
    return int(measure.label(labels, background=-1, connectivity=1).max())


@pytest.mark.parametrize("seed", range(3))
def test_regions_are_connected_numbered_and_not_small(seed):
    channels = smooth(blobs(seed=seed), 0.8)
    maps = [felzenszwalb(channels, scale, 20) for scale in (30, 200)]
    superpixels, count = overlay(maps, channels, 15)
    for labels in (*maps, superpixels):
        sizes = np.bincount(labels.ravel())
        assert sizes.min() >= 15 and connected_regions(labels) == len(sizes)
    assert count == superpixels.max() + 1


def test_overlay_keeps_every_border_of_large_regions():
    halves = np.zeros((20, 30), np.int32)
    halves[:, 13:] = 1
    superpixels, count = overlay([halves, np.zeros_like(halves)], np.zeros((20, 30, 1)), 10)
    assert count == 2 and (superpixels == halves).all()


def test_felzenszwalb_finds_what_a_known_implementation_finds():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:50] = (200, 40, 90)
    image[15:25, 30:40] = (20, 240, 90)
    ours = felzenszwalb(image.astype(np.float32), 100, 20)
    theirs = segmentation.felzenszwalb(image, scale=100, sigma=0, min_size=20)
    assert segmentation.join_segmentations(ours, theirs).max() == ours.max() == theirs.max() == 2


def test_region_graph_counts_borders():
    channels = smooth(blobs(25, 30), 0.8)
    superpixels, count = overlay([felzenszwalb(channels, 20, 5)], channels, 5)
    graph = region_graph(superpixels, count)
    borders: dict[tuple[int, int], list[float]] = {}
    for y in range(25):
        for x in range(30):
            for v, u in ((y + 1, x), (y, x + 1)):
                if v < 25 and u < 30 and superpixels[y, x] != superpixels[v, u]:
                    key = tuple(sorted((int(superpixels[y, x]), int(superpixels[v, u]))))
                    borders.setdefault(key, []).append(float(np.linalg.norm(channels[y, x] - channels[v, u])))
    assert [tuple(pair) for pair in graph.pairs.tolist()] == sorted(borders)
    assert graph.lengths.tolist() == [len(borders[key]) for key in sorted(borders)]
    np.testing.assert_allclose(graph.contrast(channels), [np.mean(borders[k]) for k in sorted(borders)], rtol=1e-5)


def test_coarsen_joins_more_with_a_larger_scale():
    channels = smooth(blobs(), 0.8)
    superpixels, count = overlay([felzenszwalb(channels, 10, 8)], channels, 8)
    graph, sizes = region_graph(superpixels, count), np.bincount(superpixels.ravel())
    counts = [coarsen(graph, sizes, graph.contrast(channels), s).max() + 1 for s in (0, 500, 1e9)]
    assert counts[0] == count > counts[1] > counts[2] == 1


def test_watershed_regions_are_basins():
    boundaries = np.full((9, 20), 0.1, np.float32)
    boundaries[:, 7] = boundaries[4, 7:] = 0.8
    found = watershed(boundaries)
    assert found.dtype == np.int32 and connected_regions(found) == len(np.unique(found)) == 3
    assert len({found[0, 0], found[0, 19], found[8, 19]}) == 3
    assert watershed(np.zeros((1, 1), np.float32)).tolist() == [[0]]


@pytest.mark.parametrize("max_groups", [1, 4, 11, 12, 99])
def test_reduce_joins_the_cheapest_pair_again_and_again(max_groups):
    graph, sizes, contrast = grid_graph(3, 4)
    groups = [{i} for i in range(12)]
    borders = list(zip(graph.pairs.tolist(), graph.lengths, contrast, strict=True))

    def cost(one: set[int], two: set[int]) -> float:
        shared = [(n, c) for (a, b), n, c in borders if (a in one and b in two) or (a in two and b in one)]
        if not shared:
            return np.inf
        return np.average([c for _, c in shared], weights=[n for n, _ in shared]) + sum(sizes[i] for i in one | two) / (
            4 * sizes.mean()
        )

    while len(groups) > max_groups:
        one, two = min(itertools.combinations(groups, 2), key=lambda pair: cost(*pair))
        groups = [g for g in groups if g not in (one, two)] + [one | two]
    found = reduce(graph, sizes, contrast, max_groups)
    assert sorted(set(found.tolist())) == list(range(len(groups)))
    assert {frozenset(np.flatnonzero(found == g).tolist()) for g in set(found.tolist())} == set(map(frozenset, groups))


def grid_graph(height: int, width: int) -> tuple[RegionGraph, np.ndarray, np.ndarray]:
    """The graph of a grid of superpixels of random sizes with random contrasts."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(height), rng.integers(2, 9, height))
    columns = np.repeat(np.arange(width), rng.integers(2, 9, width))
    superpixels = rows[:, None] * width + columns
    graph = region_graph(superpixels, height * width)
    return graph, np.bincount(superpixels.ravel()), rng.random(len(graph.pairs))
