"""Selective Search with masks (Uijlings, van de Sande, Gevers, Smeulders; IJCV 2013).

Each strategy (a colour space, a combination of similarities and a start scale) gives a hierarchy. All hierarchies share
one superpixel map, so every candidate is a union of superpixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.schema import Proposals
from boxsup_dist.data.superpixels import superpixel_extents
from boxsup_dist.proposals import assemble, features, grouping, hierarchy, near_duplicates
from boxsup_dist.proposals.settings import SIMILARITIES, SelectiveSearchSettings, Strategy
from boxsup_dist.proposals.superpixels import coarsen, felzenszwalb, overlay, reduce, region_graph, smooth

_FULL_CONTRAST = 60.0  # distance of colours, channels in 0..255, that counts as the strongest border


class _Image:
    """The superpixels of one image and the features that the strategies share, each computed once."""

    def __init__(self, image: NDArray[np.uint8], settings: SelectiveSearchSettings) -> None:
        self.image = image
        self._channels: dict[str, NDArray[np.float32]] = {}
        self._smooth: dict[str, NDArray[np.float32]] = {}
        self._colour: dict[str, NDArray[np.float32]] = {}
        self._contrast: dict[str, NDArray[np.float64]] = {}
        self.superpixels, self.count = self._leaves(settings)
        self.sizes = np.bincount(self.superpixels.ravel(), minlength=self.count)
        self.extents = superpixel_extents(self.superpixels, self.count)
        self.graph = region_graph(self.superpixels, self.count)
        self.texture = features.texture_histograms(self.superpixels, self.count, self.smooth("lab"))

    def _leaves(self, settings: SelectiveSearchSettings) -> tuple[NDArray[np.uint16], int]:
        maps = [
            felzenszwalb(self.smooth(space), settings.leaf_scale, settings.min_leaf_px)
            for space in settings.leaf_spaces
        ]
        channels = self.smooth(settings.leaf_spaces[0])
        fine, count = overlay(maps, channels, settings.min_leaf_px)
        graph = region_graph(fine, count)
        contrast = np.minimum(graph.contrast(channels) / _FULL_CONTRAST, 1)
        groups = reduce(graph, np.bincount(fine.ravel()), contrast, settings.max_leaves)
        return groups[fine].astype(np.uint16), int(groups.max()) + 1

    def channels(self, space: str) -> NDArray[np.float32]:
        if space not in self._channels:
            self._channels[space] = features.colour_space(self.image, space)
        return self._channels[space]

    def smooth(self, space: str) -> NDArray[np.float32]:
        if space not in self._smooth:
            self._smooth[space] = smooth(self.channels(space), 0.8)
        return self._smooth[space]

    def colour(self, space: str) -> NDArray[np.float32]:
        if space not in self._colour:
            self._colour[space] = features.colour_histograms(self.superpixels, self.count, self.channels(space))
        return self._colour[space]

    def contrast(self, space: str) -> NDArray[np.float64]:
        if space not in self._contrast:
            self._contrast[space] = self.graph.contrast(self.smooth(space))
        return self._contrast[space]

    def hierarchy(self, strategy: Strategy) -> hierarchy.Layout:
        groups: NDArray[np.integer] = np.arange(self.count)
        if strategy.start:
            groups = coarsen(self.graph, self.sizes, self.contrast(strategy.space), strategy.start)
        weights = np.array([float(letter in strategy.similarities) for letter in SIMILARITIES])
        merges = grouping.group(self._group_features(groups, strategy), weights)
        return hierarchy.lay_out(hierarchy.parents_of_merges(groups, merges), self.count)

    def _group_features(self, groups: NDArray[np.integer], strategy: Strategy) -> grouping.RegionFeatures:
        contrast = np.zeros(len(self.graph.pairs))
        if "b" in strategy.similarities:
            contrast = np.minimum(self.contrast(strategy.space) / _FULL_CONTRAST, 1)
        nothing = np.zeros((self.count, 1), np.float32)  # an unused feature must not be averaged at every merge
        colour = self.colour(strategy.space) if "c" in strategy.similarities else nothing
        texture = self.texture if "t" in strategy.similarities else nothing
        found = grouping.RegionFeatures(
            self.sizes.astype(np.float64), self.extents, colour, texture, self.graph.pairs, self.graph.lengths,
            contrast,
        )  # fmt: skip
        return grouping.merged_features(found, groups) if strategy.start else found


def selective_search(
    image: NDArray[np.uint8], settings: SelectiveSearchSettings | None = None, *, image_id: str = ""
) -> Proposals:
    """Propose segments of an RGB image (H, W, 3), best first; a pure function of image and settings.

    Candidates are ordered by their position in their hierarchy, the last merges first, and near-duplicates are moved to
    the end. This order is better for small budgets than the paper's, which multiplies the position by a random number.
    """
    settings = settings or SelectiveSearchSettings()
    found = _Image(assemble.shrink(image, settings.max_side_px), settings)
    layouts = [found.hierarchy(Strategy.parse(text)) for text in settings.strategies]
    unique = hierarchy.unique_nodes(layouts)
    order = np.lexsort((unique.trees, unique.positions))
    membership = hierarchy.gather_members(layouts, unique.trees[order], unique.nodes[order])
    best = near_duplicates.suppress_duplicates(
        membership, found.sizes, found.extents, settings.duplicate_jaccard, settings.max_candidates
    )
    return assemble.ranked_proposals(
        image_id, image.shape[:2], found.superpixels, found.count, membership.take(best), layouts[0].order
    )
