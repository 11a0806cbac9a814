"""Superpixels: connected, not too small, and a border graph counted the slow way."""

import numpy as np
import pytest
from skimage import measure, segmentation

from boxsup_dist.proposals import leaves
from tests.unit.proposals.pictures import blobs


def connected_regions(labels: np.ndarray) -> int:
    return int(measure.label(labels, background=-1, connectivity=1).max())


@pytest.mark.parametrize("seed", range(3))
def test_regions_are_connected_numbered_and_not_small(seed):
    channels = leaves.smooth(blobs(seed=seed), 0.8)
    maps = [leaves.felzenszwalb(channels, scale, 20) for scale in (30, 200)]
    superpixels, count = leaves.overlay(maps, channels, 15, 1000)
    for labels in (*maps, superpixels):
        sizes = np.bincount(labels.ravel())
        assert sizes.min() >= 15 and connected_regions(labels) == len(sizes)
    assert count == superpixels.max() + 1 and superpixels.dtype == np.uint16
    coarse, coarse_count = leaves.overlay(maps, channels, 15, 5)
    assert coarse_count <= 5 and connected_regions(coarse) == coarse_count


def test_overlay_keeps_every_border_of_large_regions():
    halves = np.zeros((20, 30), np.int32)
    halves[:, 13:] = 1
    superpixels, count = leaves.overlay([halves, np.ascontiguousarray(halves[::-1] * 0)], np.zeros((20, 30, 1)), 10, 99)
    assert count == 2 and (superpixels == halves).all()


def test_felzenszwalb_finds_what_a_known_implementation_finds():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:50] = (200, 40, 90)
    image[15:25, 30:40] = (20, 240, 90)
    ours = leaves.felzenszwalb(image.astype(np.float32), 100, 20)
    theirs = segmentation.felzenszwalb(image, scale=100, sigma=0, min_size=20)
    assert segmentation.join_segmentations(ours, theirs).max() == ours.max() == theirs.max() == 2


def test_region_graph_counts_borders():
    channels = leaves.smooth(blobs(25, 30), 0.8)
    superpixels, count = leaves.overlay([leaves.felzenszwalb(channels, 20, 5)], channels, 5, 1000)
    graph = leaves.region_graph(superpixels, count)
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
    channels = leaves.smooth(blobs(), 0.8)
    superpixels, count = leaves.overlay([leaves.felzenszwalb(channels, 10, 8)], channels, 8, 1000)
    graph, sizes = leaves.region_graph(superpixels, count), np.bincount(superpixels.ravel())
    counts = [leaves.coarsen(graph, sizes, graph.contrast(channels), s).max() + 1 for s in (0, 500, 1e9)]
    assert counts[0] == count > counts[1] > counts[2] == 1
