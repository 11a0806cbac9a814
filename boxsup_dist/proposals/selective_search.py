"""Selective Search with masks (Uijlings, van de Sande, Gevers, Smeulders; IJCV 2013).

Its hierarchies, one per colour space, start scale and combination of similarities, all share one superpixel map, so that
every candidate is a union of superpixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from PIL import Image

from boxsup_dist import regions
from boxsup_dist.errors import SettingError
from boxsup_dist.proposals import features, grouping, hierarchy, leaves
from boxsup_dist.schema import Proposals

_FULL_CONTRAST = 60.0  # distance of colours in 0..255 that counts as the strongest border


@dataclass(frozen=True)
class Strategy:
    """One hierarchy: what is compared, and the scale of the segmentation that it starts from."""

    space: str
    similarities: str
    start: float

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """From SPACE:SIMILARITIES[@START], for example "hsv:csf@2000"; SettingError if it is not of that form."""
        head, _, start = text.partition("@")
        space, _, similarities = head.partition(":")
        known = space in features.COLOUR_SPACES and similarities and set(similarities) <= set(grouping.SIMILARITIES)
        if not known or not (start or "0").replace(".", "", 1).isdigit():
            raise SettingError(
                "not a strategy of Selective Search",
                field="strategies",
                value=text,
                expected=f"SPACE:SIMILARITIES[@START]; SPACE one of {', '.join(features.COLOUR_SPACES)}; "
                f"SIMILARITIES letters of {grouping.SIMILARITIES}; START a scale",
            )
        return cls(space, similarities, float(start or 0))


@dataclass(frozen=True)
class SelectiveSearchSettings:
    """Sizes and strategies. The default strategies were chosen greedily by what each adds to the best Jaccard index."""

    max_candidates: int = 2000
    leaf_spaces: tuple[str, ...] = ("lab", "rgb")
    leaf_scale: float = 100.0
    min_leaf_px: int = 30
    max_leaves: int = 1500
    max_side_px: int = 1000
    strategies: tuple[str, ...] = (
        "hsv:csfb", "lab:sf", "hue:ctsf", "rgi:ctsf", "lab:cts", "hsv:csf@2000", "position:csf", "rgb:sfb", "rgi:csf",
        "hsv:sfb", "ab:cf", "hsv:ctsf", "hue:cts", "lab:csf@2000",
    )  # fmt: skip


class _Image:
    """Superpixels of one image and what the strategies share, each computed once."""

    def __init__(self, image: np.ndarray, settings: SelectiveSearchSettings) -> None:
        self.image = image
        self._channels: dict[str, np.ndarray] = {}
        self._smooth: dict[str, np.ndarray] = {}
        self._colour: dict[str, np.ndarray] = {}
        self._contrast: dict[str, np.ndarray] = {}
        self.superpixels, self.count = self._leaves(settings)
        self.sizes = np.bincount(self.superpixels.ravel(), minlength=self.count)
        self.extents = regions.superpixel_extents(self.superpixels, self.count)
        self.graph = leaves.region_graph(self.superpixels, self.count)
        self.texture = features.texture_histograms(self.superpixels, self.count, self.smooth("lab"))

    def _leaves(self, settings: SelectiveSearchSettings) -> tuple[np.ndarray, int]:
        maps = [
            leaves.felzenszwalb(self.smooth(space), settings.leaf_scale, settings.min_leaf_px)
            for space in settings.leaf_spaces
        ]
        return leaves.overlay(maps, self.smooth(settings.leaf_spaces[0]), settings.min_leaf_px, settings.max_leaves)

    def channels(self, space: str) -> np.ndarray:
        if space not in self._channels:
            self._channels[space] = features.colour_space(self.image, space)
        return self._channels[space]

    def smooth(self, space: str) -> np.ndarray:
        if space not in self._smooth:
            self._smooth[space] = leaves.smooth(self.channels(space), 0.8)
        return self._smooth[space]

    def colour(self, space: str) -> np.ndarray:
        if space not in self._colour:
            self._colour[space] = features.colour_histograms(self.superpixels, self.count, self.channels(space))
        return self._colour[space]

    def contrast(self, space: str) -> np.ndarray:
        if space not in self._contrast:
            self._contrast[space] = self.graph.contrast(self.smooth(space))
        return self._contrast[space]

    def hierarchy(self, strategy: Strategy) -> hierarchy.Layout:
        groups = np.arange(self.count)
        if strategy.start:
            groups = leaves.coarsen(self.graph, self.sizes, self.contrast(strategy.space), strategy.start)
        weights = np.array([float(letter in strategy.similarities) for letter in grouping.SIMILARITIES])
        merges = grouping.group(self._group_features(groups, strategy), weights)
        return hierarchy.lay_out(hierarchy.parents_of_merges(groups, merges), self.count)

    def _group_features(self, groups: np.ndarray, strategy: Strategy) -> grouping.RegionFeatures:
        contrast = np.zeros(len(self.graph.pairs))
        if "b" in strategy.similarities:
            contrast = np.minimum(self.contrast(strategy.space) / _FULL_CONTRAST, 1)
        found = grouping.RegionFeatures(
            self.sizes.astype(np.float64), self.extents, self.colour(strategy.space), self.texture,
            self.graph.pairs, self.graph.lengths, contrast,
        )  # fmt: skip
        return grouping.merged_features(found, groups) if strategy.start else found


def selective_search(image: np.ndarray, settings: SelectiveSearchSettings | None = None) -> Proposals:
    settings = settings or SelectiveSearchSettings()
    found = _Image(np.ascontiguousarray(image), settings)
    layouts = [found.hierarchy(Strategy.parse(text)) for text in settings.strategies]
    trees, nodes, positions, copies = hierarchy.unique_nodes(layouts)
    order = np.argsort(positions, kind="stable")[: settings.max_candidates]
    indptr, indices = hierarchy.gather_members(layouts, trees[order], nodes[order])
    return Proposals(
        image_id="",
        superpixels=found.superpixels,
        num_superpixels=found.count,
        indptr=indptr,
        indices=indices,
        objectness=np.linspace(1, 0, len(order), endpoint=False, dtype=np.float32),
        boxes=regions.union_boxes(found.extents, indptr, indices).astype(np.uint16),
    )
