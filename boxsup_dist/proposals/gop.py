"""GOP: geodesic object proposals (after Kraehenbuehl and Koltun, ECCV 2014).

1. The borders of the superpixel graph are weighted in several ways; each way gives a geodesic distance.
2. For each distance, seeds are placed far from each other, and the superpixels are ordered by their distance from each
   seed. In some orders a share of the distance from some sides of the image, the background, is subtracted first.
3. The critical levels of all orders are the candidates. A small learned model ranks them (gop_ranking.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.schema import Proposals
from boxsup_dist.data.superpixels import superpixel_extents
from boxsup_dist.proposals import assemble, edges, features, geodesic, gop_ranking, hierarchy, near_duplicates
from boxsup_dist.proposals.membership import Membership
from boxsup_dist.proposals.oversegment import FULL_CONTRAST, oversegment
from boxsup_dist.proposals.settings import GopSettings
from boxsup_dist.proposals.superpixels import region_graph, smooth


class _Background(NamedTuple):
    """Some sides of the image as background: the share of the distance from them that is subtracted."""

    sides: str  # first letters of top, bottom, left, right; empty: none
    share: float


class _Distance(NamedTuple):
    """One weighting of the borders: step + strength * s^power + coarse * c^power + colour * d^power.

    s, c and d are the border's boundary strength, coarse boundary strength and colour difference.
    """

    power: int
    strength: float
    coarse: float
    colour: float
    step: float
    backgrounds: tuple[_Background, ...]

    def weights(self, borders: gop_ranking.Borders) -> NDArray[np.float64]:
        """Return the weight (E,) of every border."""
        shares = np.array([self.strength, self.coarse, self.colour])
        weights: NDArray[np.float64] = self.step + shares @ np.stack(borders) ** self.power
        return weights


_WHOLE = _Background("", 0.0)
# Chosen greedily out of 56 pairs of distance and background, by the gain in the best Jaccard index of all levels on
# every third of the even images. High powers follow closed contours, long steps make regions round, and a background
# of one side finds objects that touch the other sides.
_DISTANCES = (
    _Distance(3, 1.0, 0.0, 1.0, 1e-4, (_Background("tblr", 1.0),)),
    _Distance(1, 1.0, 0.0, 0.5, 0.1, (_WHOLE, _Background("tblr", 1.0))),
    _Distance(2, 0.0, 0.0, 1.0, 0.03, (_Background("t", 1.0),)),
    _Distance(2, 0.0, 0.0, 1.0, 1e-4, (_Background("tlr", 1.0), _Background("tblr", 0.5))),
    _Distance(2, 0.0, 1.0, 0.2, 1e-3, (_Background("tb", 1.0),)),
)
_MAX_EXAMINED = 8_000  # candidates that are examined for near-duplicates


def _side(superpixels: NDArray[np.uint16], sides: str) -> NDArray[np.int64]:
    """Return the superpixels along some sides of the image, sorted."""
    lines = {"t": superpixels[0], "b": superpixels[-1], "l": superpixels[:, 0], "r": superpixels[:, -1]}
    return np.unique(np.concatenate([lines[side] for side in sides])).astype(np.int64)


def _order_superpixels(
    superpixels: NDArray[np.uint16], near: geodesic.Neighbours, borders: gop_ranking.Borders, num_seeds: int
) -> list[NDArray[np.int64]]:
    """Return for every distance and background the orders (seeds, S) from all seeds."""
    middle = int(superpixels[superpixels.shape[0] // 2, superpixels.shape[1] // 2])
    orders = []
    for distance in _DISTANCES:
        weights = distance.weights(borders)
        from_seeds = geodesic.place_seeds(middle, num_seeds, near, weights)[1]
        for sides, share in distance.backgrounds:
            taken_off = share * geodesic.distances(_side(superpixels, sides), near, weights) if sides else 0.0
            orders.append(np.argsort(from_seeds - taken_off, axis=1, kind="stable"))
    return orders


def gop(image: NDArray[np.uint8], settings: GopSettings | None = None, *, image_id: str = "") -> Proposals:
    """Propose segments of an RGB image (H, W, 3), best first; a pure function of image and settings."""
    settings = settings or GopSettings()
    small = assemble.shrink(image, settings.max_side_px)
    boundaries = edges.gradient_boundaries(small)
    lab = smooth(features.colour_space(small, "lab"), 0.8)
    superpixels, count = oversegment(
        small, lab, boundaries.mean, settings.min_leaf_px, settings.max_leaves, learned=False
    )
    graph = region_graph(superpixels, count)
    near = geodesic.neighbours(graph.pairs, count)
    sizes, extents = np.bincount(superpixels.ravel()), superpixel_extents(superpixels, count)
    colour = _colour_difference(superpixels, sizes, lab, graph.pairs)
    borders = gop_ranking.Borders(graph.strength(boundaries.mean), graph.strength(boundaries.coarse), colour)
    summed = geodesic.Superpixels(sizes, extents, hierarchy.superpixel_hashes(count), borders.sums(graph.lengths))
    orders = _order_superpixels(superpixels, near, borders, settings.num_seeds)
    parts = [geodesic.find_levels(part, summed, near, settings.level_ratio) for part in orders]
    found = geodesic.join_levels(parts, [len(part) for part in orders])
    best = _rank(found, superpixels.shape)[:_MAX_EXAMINED]
    membership = Membership(*geodesic.gather_levels(np.concatenate(orders), found.orders[best], found.ends[best]))
    kept = near_duplicates.survivors(membership, sizes, extents, settings.duplicate_jaccard, settings.max_candidates)
    return assemble.ranked_proposals(image_id, image.shape[:2], superpixels, count, membership.take(kept), orders[0][0])


def _colour_difference(
    superpixels: NDArray[np.uint16], sizes: NDArray[np.int64], lab: NDArray[np.float32], pairs: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return the distance (E,) of the mean colours of neighbours; 1 is the contrast of the strongest border."""
    sums = [np.bincount(superpixels.ravel(), lab[..., c].ravel()) for c in range(3)]
    means = np.stack(sums, 1) / sizes[:, None]
    difference: NDArray[np.float64] = np.linalg.norm(means[pairs[:, 0]] - means[pairs[:, 1]], axis=1) / FULL_CONTRAST
    return difference


def _rank(found: geodesic.Levels, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return the indices of the different levels, best first."""
    _, first, copies = np.unique(found.regions.hashes, return_index=True, return_counts=True)
    regions = geodesic.Regions._make(values[first] for values in found.regions)
    return first[np.argsort(-gop_ranking.density(regions, copies, shape), kind="stable")]
