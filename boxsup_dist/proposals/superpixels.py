"""Superpixels: the smallest regions of an image, which are the leaves of all its hierarchies.

An image is segmented by Felzenszwalb and Huttenlocher's graph segmentation (IJCV 2004) or by the watershed of a
boundary map. Several such region maps are overlaid into one, and neighbours are joined until few enough are left.

Shapes: D channels, E pairs of neighbours. A region map gives every pixel the number of its region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import higra as hg
import numpy as np
import scipy.ndimage as ndi
from numpy.typing import NDArray

from boxsup_dist.proposals import grouping
from boxsup_dist.proposals.compiled import compiled


@compiled
def _find(parent: NDArray[np.int32], node: int) -> int:
    """Return the root of a node in a union-find forest, and shorten its path."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def _join_by_weight(
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    weight: NDArray[np.floating],
    parent: NDArray[np.int32],
    size: NDArray[np.int32],
    scale: float,
) -> None:
    """Join both sides of an edge if its weight is at most each side's internal difference + scale / size.

    Edges come in rising weight, so a region's internal difference is the weight of its last join.
    """
    limit = np.empty(len(parent), np.float64)
    for node in range(len(parent)):
        limit[node] = scale / max(size[node], 1)
    for e in range(len(first)):
        a, b = _find(parent, first[e]), _find(parent, second[e])
        if a != b and weight[e] <= limit[a] and weight[e] <= limit[b]:
            parent[b] = a
            size[a] += size[b]
            limit[a] = weight[e] + scale / size[a]


@compiled
def _join_small(
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    parent: NDArray[np.int32],
    size: NDArray[np.int32],
    min_size: int,
) -> None:
    """Join every region smaller than min_size to the neighbour across its weakest edge; edges come in rising weight."""
    for e in range(len(first)):
        a, b = _find(parent, first[e]), _find(parent, second[e])
        if a != b and (size[a] < min_size or size[b] < min_size):
            parent[b] = a
            size[a] += size[b]


@compiled
def _join_equal(regions: NDArray[np.int64], parent: NDArray[np.int32], size: NDArray[np.int32]) -> None:
    """Join 4-connected pixels of the same number."""
    height, width = regions.shape
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0)):
                if y + dy < height and x + dx < width and regions[y, x] == regions[y + dy, x + dx]:
                    a, b = _find(parent, y * width + x), _find(parent, (y + dy) * width + x + dx)
                    if a != b:
                        parent[b] = a
                        size[a] += size[b]


@compiled
def _number(parent: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """Number the regions from 0 in order of their first pixel; return each pixel's number and the count of regions."""
    numbers = np.full(len(parent), -1, np.int32)
    out = np.empty(len(parent), np.int32)
    count = 0
    for pixel in range(len(parent)):
        root = _find(parent, pixel)
        if numbers[root] < 0:
            numbers[root] = count
            count += 1
        out[pixel] = numbers[root]
    return out, count


def pixel_edges(
    channels: NDArray[np.float32],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Return all pairs of 4-connected pixels in rising order of their distance in `channels` (H, W, D).

    Distances are ordered in 65,536 steps; pairs within one step keep their order in the image.

    Returns:
        First pixel, second pixel (indices into the flat image) and Euclidean distance of every pair.
    """
    height, width = channels.shape[:2]
    pixels = np.arange(height * width, dtype=np.int32).reshape(height, width)
    across = np.sqrt(((channels[:, 1:] - channels[:, :-1]) ** 2).sum(-1)).ravel()
    down = np.sqrt(((channels[1:] - channels[:-1]) ** 2).sum(-1)).ravel()
    first = np.concatenate([pixels[:, :-1].ravel(), pixels[:-1].ravel()])
    second = np.concatenate([pixels[:, 1:].ravel(), pixels[1:].ravel()])
    weight = np.concatenate([across, down])
    # A radix sort of 16-bit keys takes a tenth of the time of sorting floats.
    key = np.minimum(weight * (65535 / max(float(weight.max(initial=0)), 1e-6)), 65535).astype(np.uint16)
    order = np.argsort(key, kind="stable")
    return first[order], second[order], weight[order]


def felzenszwalb(channels: NDArray[np.float32], scale: float, min_size: int) -> NDArray[np.int32]:
    """Segment an image by Felzenszwalb and Huttenlocher's graph segmentation.

    Args:
        channels: (H, W, D), the smoothed image.
        scale: K of the paper; a larger one gives larger regions.
        min_size: Regions of fewer pixels are joined to a neighbour.

    Returns:
        Region map (H, W), numbers from 0.
    """
    first, second, weight = pixel_edges(channels)
    shape = channels.shape[:2]
    parent = np.arange(shape[0] * shape[1], dtype=np.int32)
    size = np.ones(len(parent), np.int32)
    _join_by_weight(first, second, weight, parent, size, scale)
    _join_small(first, second, parent, size, min_size)
    regions: NDArray[np.int32] = _number(parent)[0].reshape(shape)
    return regions


def watershed(boundaries: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return the region map (H, W) of the catchment basins of a boundary map (H, W), without lines between them."""
    graph = hg.get_4_adjacency_graph(boundaries.shape)
    weights = hg.weight_graph(graph, boundaries, hg.WeightFunction.mean)
    basins: NDArray[np.int32] = (hg.labelisation_watershed(graph, weights) - 1).astype(np.int32)
    return basins.reshape(boundaries.shape)


def overlay(
    region_maps: Sequence[NDArray[np.int32]], channels: NDArray[np.float32], min_size: int
) -> tuple[NDArray[np.int32], int]:
    """Overlay region maps (H, W): two neighbouring pixels stay in one region if they are so in every map.

    A region of fewer than `min_size` pixels is joined to the neighbour at the smallest distance in `channels`
    (H, W, D).

    Returns:
        Region map (H, W) of connected regions, numbers from 0, and the count of regions.
    """
    combined = region_maps[0].astype(np.int64)
    for region_map in region_maps[1:]:
        combined = combined * (int(region_map.max()) + 1) + region_map
    shape = combined.shape
    parent = np.arange(shape[0] * shape[1], dtype=np.int32)
    size = np.ones(len(parent), np.int32)
    _join_equal(combined, parent, size)
    first, second, _ = pixel_edges(channels)
    _join_small(first, second, parent, size, min_size)
    regions, count = _number(parent)
    return regions.reshape(shape), count


def smooth(channels: NDArray[np.float32] | NDArray[np.uint8], sigma: float) -> NDArray[np.float32]:
    """Smooth each channel of (H, W, D) by a Gaussian of `sigma` pixels."""
    smoothed: NDArray[np.float32] = ndi.gaussian_filter(
        np.asarray(channels, np.float32), (sigma, sigma, 0), mode="nearest", truncate=3.0
    )
    return smoothed


class RegionGraph(NamedTuple):
    """The pairs of neighbouring superpixels, and the pairs of pixels along their borders."""

    pairs: NDArray[np.int32]  # (E, 2), smaller id first, sorted
    lengths: NDArray[np.float64]  # (E,), number of 4-connected pixel pairs along the border
    border_pairs: NDArray[np.intp]  # (pixel pairs,), index of the pair of superpixels
    first_px: NDArray[np.intp]  # (pixel pairs,), index into the flat image
    second_px: NDArray[np.intp]  # (pixel pairs,)

    def contrast(self, channels: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the mean distance (E,) in `channels` (H, W, D) across each pair's border."""
        flat = channels.reshape(-1, channels.shape[-1])
        distance = np.sqrt(((flat[self.first_px] - flat[self.second_px]) ** 2).sum(-1))
        contrast: NDArray[np.float64] = np.bincount(self.border_pairs, distance, len(self.pairs)) / self.lengths
        return contrast

    def strength(self, boundaries: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the mean (E,) of a boundary map (H, W) along each pair's border."""
        flat = boundaries.ravel()
        across = np.maximum(flat[self.first_px], flat[self.second_px])  # a boundary may lie on either side
        strength: NDArray[np.float64] = np.bincount(self.border_pairs, across, len(self.pairs)) / self.lengths
        return strength


def region_graph(superpixels: NDArray[np.integer], num_superpixels: int) -> RegionGraph:
    """Return the graph of the superpixels of a map (H, W) that share a 4-connected border."""
    height, width = superpixels.shape
    pixels = np.arange(height * width).reshape(height, width)
    firsts, seconds = [], []
    for a, b in ((pixels[:, :-1], pixels[:, 1:]), (pixels[:-1], pixels[1:])):
        differ = superpixels.ravel()[a] != superpixels.ravel()[b]
        firsts.append(a[differ])
        seconds.append(b[differ])
    first_px, second_px = np.concatenate(firsts), np.concatenate(seconds)
    one, two = superpixels.ravel()[first_px].astype(np.int64), superpixels.ravel()[second_px].astype(np.int64)
    keys, border_pairs = np.unique(np.minimum(one, two) * num_superpixels + np.maximum(one, two), return_inverse=True)
    pairs = np.stack([keys // num_superpixels, keys % num_superpixels], 1).astype(np.int32)
    lengths = np.bincount(border_pairs, minlength=len(pairs)).astype(np.float64)
    return RegionGraph(pairs, lengths, border_pairs, first_px, second_px)


def coarsen(
    graph: RegionGraph, sizes: NDArray[np.int64], contrast: NDArray[np.float64], scale: float
) -> NDArray[np.int32]:
    """Group superpixels by Felzenszwalb's segmentation, with superpixels in the place of pixels.

    Args:
        graph: The superpixels' graph.
        sizes: (S,), pixels of every superpixel.
        contrast: (E,), the weight of each pair.
        scale: K of the paper; 0 leaves every superpixel alone.

    Returns:
        Group (S,) of every superpixel, numbers from 0.
    """
    parent = np.arange(len(sizes), dtype=np.int32)
    order = np.argsort(contrast, kind="stable")
    first, second = graph.pairs[order, 0], graph.pairs[order, 1]
    if scale > 0:
        _join_by_weight(first, second, contrast[order], parent, sizes.astype(np.int32), scale)
    groups: NDArray[np.int32] = _number(parent)[0]
    return groups


def reduce(
    graph: RegionGraph, sizes: NDArray[np.int64], contrast: NDArray[np.float64], max_groups: int
) -> NDArray[np.int32]:
    """Group neighbouring superpixels into at most `max_groups` groups.

    Joins greedily the two neighbours with the smallest contrast of their border plus a quarter of their size over the
    mean size. Without the size, weak borders between large regions would be joined before specks.

    Args:
        graph: The superpixels' graph.
        sizes: (S,), pixels of every superpixel.
        contrast: (E,), contrast along the border of each pair, 0 to 1.
        max_groups: Largest number of groups.

    Returns:
        Group (S,) of every superpixel, numbers from 0.
    """
    num_superpixels = len(sizes)
    nothing = np.zeros((num_superpixels, 1), np.float32)
    boxes = np.zeros((num_superpixels, 4), np.int32)
    found = grouping.RegionFeatures(
        sizes.astype(np.float64), boxes, nothing, nothing, graph.pairs, graph.lengths, contrast
    )
    merges = grouping.group(found, np.array([0, 0, num_superpixels / 4, 0, 1]))[: max(num_superpixels - max_groups, 0)]
    parent = np.arange(num_superpixels + len(merges), dtype=np.int32)
    for side in (0, 1):
        parent[merges[:, side]] = np.arange(num_superpixels, len(parent))
    groups: NDArray[np.int32] = _number(parent)[0][:num_superpixels]
    return groups
