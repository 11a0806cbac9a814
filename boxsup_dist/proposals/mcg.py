"""MCG: combinatorial grouping on diverse hierarchies (after Arbelaez, Pont-Tuset, Barron, Marques, Malik; CVPR 2014).

1. A boundary map and colours give one superpixel map (oversegment.py).
2. Several hierarchies are built over it, each comparing regions by other properties (grouping.py).
3. Each hierarchy is split from its root; the regions that appear, and small sets of neighbouring regions, are the
   candidates (combining.py).
4. A small learned model ranks the candidates (mcg_ranking.py), and near-duplicates are dropped (near_duplicates.py).

The hierarchies share the superpixels, so their contours need no alignment, and every candidate is a set of superpixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.schema import Proposals
from boxsup_dist.data.superpixels import superpixel_extents
from boxsup_dist.errors import InputError, StoreUnavailableError, WeightsError
from boxsup_dist.io import storage
from boxsup_dist.proposals import (
    assemble,
    combining,
    edges,
    features,
    grouping,
    hierarchy,
    mcg_ranking,
    near_duplicates,
)
from boxsup_dist.proposals.oversegment import oversegment
from boxsup_dist.proposals.settings import McgSettings, Tree
from boxsup_dist.proposals.superpixels import region_graph, smooth

_MAX_EXAMINED = 30_000  # candidates that are examined for near-duplicates


def identity(settings: McgSettings) -> dict[str, Any]:
    """Return the JSON values by which a build is known: the settings, with a hash of the weight file for its path.

    The same file in another place is the same build, and another file in the same place is another build.

    Raises:
        WeightsError: If the weight file can't be read.
    """
    values = asdict(settings)
    if settings.hed_weights is not None:
        try:
            values["hed_weights"] = "sha256:" + hashlib.sha256(storage.read_bytes(settings.hed_weights)).hexdigest()
        except StoreUnavailableError:
            raise
        except InputError as error:
            raise WeightsError("can't read HED's weights", file=settings.hed_weights, value=error.reason) from None
    return values


def detect(images: Sequence[NDArray[np.uint8]], settings: McgSettings) -> list[edges.Boundaries]:
    """Compute the boundary maps of RGB images (H, W, 3), at the size at which `mcg` segments them.

    Raises:
        WeightsError: If HED's weights can't be loaded.
    """
    images = [assemble.shrink(image, settings.max_side_px) for image in images]
    if settings.edges == "gradient":
        return [edges.gradient_boundaries(image) for image in images]
    assert settings.hed_weights is not None
    return edges.hed_boundaries(images, settings.hed_weights)


class _Image:
    """The superpixels of one image and the features that its hierarchies compare, each computed once."""

    def __init__(self, image: NDArray[np.uint8], boundaries: edges.Boundaries, settings: McgSettings) -> None:
        self.image, self.boundaries = image, boundaries
        self.lab = smooth(features.colour_space(image, "lab"), 0.8)
        self.superpixels, self.count = oversegment(
            image, self.lab, boundaries.mean, settings.min_leaf_px, settings.max_leaves, learned=settings.edges == "hed"
        )
        self.sizes = np.bincount(self.superpixels.ravel(), minlength=self.count)
        self.extents = superpixel_extents(self.superpixels, self.count)
        self.graph = region_graph(self.superpixels, self.count)
        self.texture = features.texture_histograms(self.superpixels, self.count, self.lab)
        self.strength = {name: self.graph.strength(map_) for name, map_ in boundaries._asdict().items()}
        self.colour: dict[str, NDArray[np.float32]] = {}

    def merges(self, tree: Tree) -> NDArray[np.int32]:
        """Build a hierarchy as merges (S - 1, 2)."""
        nothing = np.zeros((self.count, 1), np.float32)  # an unused feature must not be averaged at every merge
        colour = self._colour(tree.space) if tree.space else nothing
        texture = self.texture if "t" in tree.similarities else nothing
        found = grouping.RegionFeatures(
            self.sizes.astype(np.float64), self.extents, colour, texture, self.graph.pairs, self.graph.lengths,
            self.strength[tree.boundary],
        )  # fmt: skip
        return grouping.group(found, tree.weights())

    def _colour(self, space: str) -> NDArray[np.float32]:
        if space not in self.colour:
            channels = features.colour_space(self.image, space)
            self.colour[space] = features.colour_histograms(self.superpixels, self.count, channels)
        return self.colour[space]


def mcg(
    image: NDArray[np.uint8],
    settings: McgSettings | None = None,
    *,
    boundaries: edges.Boundaries | None = None,
    image_id: str = "",
) -> Proposals:
    """Propose segments of an image, best first; a pure function of image and settings.

    Args:
        image: RGB (H, W, 3).
        settings: None takes the defaults.
        boundaries: Boundary maps of the image from `detect`; None computes them here.
        image_id: Id of the image.

    Raises:
        WeightsError: If HED's weights can't be loaded.
    """
    settings = settings or McgSettings()
    if boundaries is None:
        boundaries = detect([image], settings)[0]
    found = _Image(assemble.shrink(image, settings.max_side_px), boundaries, settings)
    max_steps = (settings.single_steps, settings.pair_steps, settings.triplet_steps)
    layouts, combinations = [], []
    for tree in map(Tree.parse, settings.hierarchies):
        merges = found.merges(tree)
        layouts.append(hierarchy.lay_out(hierarchy.parents_of_merges(np.arange(found.count), merges), found.count))
        graph = found.graph
        combinations.append(combining.combine(merges, graph.pairs, graph.lengths, found.strength["mean"], max_steps))
    pool = combining.pool_together(layouts, combinations, found.sizes, found.extents)
    order = mcg_ranking.by_density(pool, mcg_ranking.first_order(pool)[:_MAX_EXAMINED], found.superpixels.shape)
    membership = hierarchy.gather_members(layouts, pool.trees[order], pool.nodes[order])
    kept = near_duplicates.survivors(
        membership, found.sizes, found.extents, settings.duplicate_jaccard, settings.max_candidates
    )
    return assemble.ranked_proposals(
        image_id,
        image.shape[:2],
        found.superpixels,
        found.count,
        membership.take(kept),
        layouts[0].order,
    )
