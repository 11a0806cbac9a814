"""Selective Search with masks (Uijlings, van de Sande, Gevers, Smeulders; IJCV 2013).

Its hierarchies, one per colour space, start scale and combination of similarities, all share one superpixel map, so that
every candidate is a union of superpixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from skimage import color

from boxsup_dist import regions
from boxsup_dist.proposals import grouping, hierarchy, leaves
from boxsup_dist.schema import Proposals

COLOUR_BINS = 25
TEXTURE_BINS = 10
SIMILARITIES = "ctsf"  # colour, texture, size, fill


@dataclass(frozen=True)
class SelectiveSearchSettings:
    """Strategies and sizes."""

    max_candidates: int = 2000
    leaf_scale: float = 100.0
    leaf_sigma: float = 0.8
    leaf_spaces: tuple[str, ...] = ("lab", "rgb")
    min_leaf_px: int = 30
    min_candidate_px: int = 0
    starts: tuple[float, ...] = (0.0, 100.0)
    strategies: tuple[str, ...] = ("lab:ctsf", "lab:tsf", "hsv:ctsf", "hsv:csf", "rgb:ctsf", "rgb:sf", "lab:csf")


def colour_space(image: np.ndarray, name: str) -> np.ndarray:
    """float32 (H, W, 3), every channel scaled to about 0..255 as the paper does."""
    rgb = image.astype(np.float32)
    if name == "rgb":
        return rgb
    if name == "lab":
        return color.rgb2lab(image).astype(np.float32) * np.float32([2.55, 1.275, 1.275]) + np.float32([0, 127, 127])
    if name == "hsv":
        return color.rgb2hsv(image).astype(np.float32) * np.float32(255)
    if name == "nrgbi":
        total = rgb.sum(-1) + 1
        return np.stack([rgb[..., 0] / total * 255, rgb[..., 1] / total * 255, total / 3], -1)
    raise ValueError(name)


@numba.njit(cache=True)
def _histograms(superpixels: np.ndarray, bins: np.ndarray, num_superpixels: int, num_bins: int) -> np.ndarray:
    out = np.zeros((num_superpixels, len(bins) * num_bins), np.float32)
    for c in range(len(bins)):
        for i in range(len(superpixels)):
            out[superpixels[i], c * num_bins + bins[c, i]] += 1
    for s in range(num_superpixels):
        out[s] /= max(out[s].sum(), 1)
    return out


def colour_histograms(superpixels: np.ndarray, num_superpixels: int, channels: np.ndarray) -> np.ndarray:
    """L1-normalised histograms of 25 bins a channel, float32 (S, 25 D)."""
    bins = np.clip(channels * (COLOUR_BINS / 256), 0, COLOUR_BINS - 1).astype(np.uint8)
    flat = np.ascontiguousarray(bins.reshape(-1, bins.shape[-1]).T)
    return _histograms(superpixels.ravel(), flat, num_superpixels, COLOUR_BINS)


def texture_histograms(superpixels: np.ndarray, num_superpixels: int, channels: np.ndarray) -> np.ndarray:
    """L1-normalised histograms of the gradient in 8 directions, 10 bins each per channel, float32 (S, 80 D)."""
    smoothed = leaves.smooth(channels, 1.0)
    gy, gx = np.gradient(smoothed, axis=0), np.gradient(smoothed, axis=1)
    bins = []
    for c in range(channels.shape[2]):
        for angle in np.arange(4) * np.pi / 4:
            response = np.cos(angle) * gx[..., c] + np.sin(angle) * gy[..., c]
            for signed in (response, -response):
                level = np.sqrt(np.maximum(signed, 0)) * (TEXTURE_BINS / 8)
                bins.append(np.minimum(level, TEXTURE_BINS - 1).astype(np.uint8).ravel())
    return _histograms(superpixels.ravel(), np.stack(bins), num_superpixels, TEXTURE_BINS)


def selective_search(
    image: np.ndarray, settings: SelectiveSearchSettings | None = None, image_id: str = ""
) -> Proposals:
    """All candidate segments of an image, best first.

    `image` is uint8 (H, W, 3).
    """
    settings = settings or SelectiveSearchSettings()
    image = np.ascontiguousarray(image)
    spaces = {
        name: colour_space(image, name)
        for name in sorted({*settings.leaf_spaces, *(s.split(":")[0] for s in settings.strategies)})
    }
    smoothed = {name: leaves.smooth(spaces[name], settings.leaf_sigma) for name in settings.leaf_spaces}
    maps = [leaves.felzenszwalb(smoothed[n], settings.leaf_scale, settings.min_leaf_px) for n in settings.leaf_spaces]
    superpixels, count = leaves.overlay(maps, smoothed[settings.leaf_spaces[0]], settings.min_leaf_px)
    superpixels = superpixels.astype(np.uint16)
    sizes = np.bincount(superpixels.ravel(), minlength=count)
    extents = regions.superpixel_extents(superpixels, count)
    pairs = leaves.neighbour_pairs(superpixels, count)
    layouts = []
    colour = {n: colour_histograms(superpixels, count, c) for n, c in spaces.items()}
    texture = {"lab": texture_histograms(superpixels, count, spaces["lab"])}
    for strategy in settings.strategies:
        space, similarities = strategy.split(":")
        weights = np.array([float(s in similarities) for s in SIMILARITIES])
        features = grouping.RegionFeatures(sizes.astype(np.float64), extents, colour[space], texture["lab"])
        merges = grouping.group(features, pairs, weights)
        parents = np.arange(2 * count - 1, dtype=np.int32)
        for side in (0, 1):
            parents[merges[:, side]] = np.arange(count, 2 * count - 1)
        layouts.append(hierarchy.lay_out(parents, count))
    hashes = hierarchy.superpixel_hashes(count)
    node_hash = np.stack([layout.sums(hashes) for layout in layouts], 1)[::-1]
    nodes = np.repeat(np.arange(2 * count - 1)[::-1, None], len(layouts), 1)
    trees = np.repeat(np.arange(len(layouts))[None], 2 * count - 1, 0)
    _, first = np.unique(node_hash.ravel(), return_index=True)
    first = np.sort(first)[: settings.max_candidates]
    nodes, trees = nodes.ravel()[first], trees.ravel()[first]
    indptr, indices = hierarchy.gather_members(layouts, trees, nodes)
    return Proposals(
        image_id=image_id,
        superpixels=superpixels,
        num_superpixels=count,
        indptr=indptr,
        indices=indices,
        objectness=np.linspace(1, 0, len(nodes), endpoint=False, dtype=np.float32),
        boxes=regions.union_boxes(extents, indptr, indices).astype(np.uint16),
    )
