"""GOP: geodesic object proposals (Kraehenbuehl and Koltun, ECCV 2014).

Seeds are placed over the superpixel graph, far from each other where distances count boundaries. From every seed the
superpixels are ordered by their geodesic distance, as it is and less their distance from the image's border (the
background); the critical levels of these orders are the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from boxsup_dist.errors import SettingError
from boxsup_dist.proposals import edges, features, geodesic, hierarchy, leaves, ranked, ranking
from boxsup_dist.proposals.oversegment import FULL_CONTRAST, oversegment
from boxsup_dist.regions import superpixel_extents
from boxsup_dist.schema import Proposals

# Weights of a border in the distances: squares of boundary strength and of colour difference, and a step's own length.
_DISTANCES = ((1.0, 0.5, 1e-4), (0.0, 1.0, 1e-4), (1.0, 0.5, 3e-3))
_BACKGROUNDS = (0.0, 1.0)  # share of the distance from the image's border that is taken off


@dataclass(frozen=True)
class GopSettings:
    """Sizes and numbers of seeds."""

    max_candidates: int = 800
    """Candidates kept of each image, best first."""
    min_leaf_px: int = 8
    """Smaller superpixels are joined to a neighbour."""
    max_leaves: int = 1500
    """While there are more superpixels, two neighbours are joined: weak borders and small superpixels first."""
    max_side_px: int = 1000
    """Images with a longer side are segmented at this size; the superpixel map has the image's own size."""
    num_seeds: int = 100
    """Seeds placed for each of the distances."""
    level_ratio: float = 1.15
    """A level is critical if no region up to this much larger or smaller has a stronger contour."""
    duplicate_jaccard: float = 0.85
    """Candidates that overlap a better one by more are left out."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_candidates", 1, 2**31), ("min_leaf_px", 1, 2**31), ("max_leaves", 1, 2**16),
            ("max_side_px", 1, 2**15), ("num_seeds", 1, 2**16), ("level_ratio", 1, np.inf), ("duplicate_jaccard", 0, 1),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise SettingError("out of range", field=name, value=getattr(self, name), expected=f"{low} to {high}")


class _Orders(NamedTuple):
    """Orders of the superpixels, each by a distance from a seed."""

    superpixels: np.ndarray  # int64 (T, S)
    seeds: np.ndarray  # int64 (T,), number of the seed: 0 the first that was placed


def _order_superpixels(
    superpixels: np.ndarray, graph: leaves.RegionGraph, strength: np.ndarray, colour: np.ndarray, num_seeds: int
) -> _Orders:
    """Orders from all seeds by all distances; `strength` and `colour` (E,) are what the borders weigh."""
    height, width = superpixels.shape
    near = geodesic.neighbours(graph.pairs, int(superpixels.max()) + 1)
    background = np.unique(np.concatenate([*superpixels[[0, -1]], *superpixels[:, [0, -1]].T])).astype(np.int64)
    orders, numbers = [], []
    for strength_weight, colour_weight, step in _DISTANCES:
        weights = strength_weight * strength**2 + colour_weight * colour**2 + step
        seeds, from_seed = geodesic.place_seeds(int(superpixels[height // 2, width // 2]), num_seeds, near, weights)
        from_background = geodesic.distances(background, near, weights)
        for share in _BACKGROUNDS:
            orders.append(np.argsort(from_seed - share * from_background, axis=1, kind="stable"))
            numbers.append(np.arange(len(seeds)))
    return _Orders(np.concatenate(orders), np.concatenate(numbers))


def gop(image: np.ndarray, settings: GopSettings | None = None, *, image_id: str = "") -> Proposals:
    """Candidate segments of an image, uint8 RGB (H, W, 3), best first; a pure function of image and settings."""
    settings = settings or GopSettings()
    small = ranked.shrink(image, settings.max_side_px)
    boundaries = edges.gradient_boundaries(small).mean
    lab = leaves.smooth(features.colour_space(small, "lab"), 0.8)
    superpixels, count = oversegment(small, lab, boundaries, settings.min_leaf_px, settings.max_leaves, learned=False)
    sizes = np.bincount(superpixels.ravel())
    graph = leaves.region_graph(superpixels, count)
    strength = graph.strength(boundaries)
    colour = _colour_difference(superpixels, sizes, lab, graph)
    orders = _order_superpixels(superpixels, graph, strength, colour, settings.num_seeds)
    near = geodesic.neighbours(graph.pairs, count)
    levels = geodesic.find_levels(orders.superpixels, sizes, near, graph.lengths, strength, settings.level_ratio)
    best = _rank(levels, orders, count)
    membership = hierarchy.gather_slices(
        orders.superpixels, levels.orders[best], np.zeros(len(best), np.int64), levels.ends[best]
    )
    extents = superpixel_extents(superpixels, count)
    kept = ranking.survivors(membership, sizes, extents, settings.duplicate_jaccard, settings.max_candidates)
    membership = ranking.take(*membership, kept)
    numbering = orders.superpixels[0]
    return ranked.ranked_proposals(image_id, image.shape[:2], superpixels, count, membership, numbering)


def _colour_difference(
    superpixels: np.ndarray, sizes: np.ndarray, lab: np.ndarray, graph: leaves.RegionGraph
) -> np.ndarray:
    """Distance of the mean colours of neighbours, float64 (E,), 1 the strongest border's contrast."""
    sums = [np.bincount(superpixels.ravel(), lab[..., c].ravel()) for c in range(3)]
    means = np.stack(sums, 1) / sizes[:, None]
    return np.linalg.norm(means[graph.pairs[:, 0]] - means[graph.pairs[:, 1]], axis=1) / FULL_CONTRAST


def _rank(levels: geodesic.Levels, orders: _Orders, num_superpixels: int) -> np.ndarray:
    """The different levels, best first, as indices: strong contours, early seeds."""
    hashes = np.cumsum(hierarchy.superpixel_hashes(num_superpixels)[orders.superpixels], axis=1, dtype=np.uint64)
    cost = np.log1p(orders.seeds[levels.orders]) - 4 * levels.outer
    by_cost = np.argsort(cost, kind="stable")
    _, first = np.unique(hashes[levels.orders, levels.ends - 1][by_cost], return_index=True)
    return by_cost[np.sort(first)]
