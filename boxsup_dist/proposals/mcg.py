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
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.schema import Proposals
from boxsup_dist.data.superpixels import superpixel_extents
from boxsup_dist.errors import InputError, SettingError, WeightsError
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
from boxsup_dist.proposals.edges import Detector
from boxsup_dist.proposals.oversegment import oversegment
from boxsup_dist.proposals.superpixels import region_graph, smooth

_MAX_EXAMINED = 30_000  # candidates that are examined for near-duplicates


@dataclass(frozen=True)
class Tree:
    """One hierarchy of MCG: the similarities by which its regions are merged."""

    space: str | None  # colour space of the colour similarity; None without the letter c
    similarities: str  # letters of SIMILARITIES; a repeated letter weighs more
    boundary: str  # boundary map of the border similarity

    @classmethod
    def parse(cls, text: str) -> Tree:
        """Parse [SPACE:]SIMILARITIES[@BOUNDARY], for example "lab:csfb" or "ssffb@coarse".

        Raises:
            SettingError: if the text has another form, a SPACE without the letter c or the letter c without a SPACE, or
                a BOUNDARY without the letter b.
        """
        match = re.fullmatch(rf"(?:(\w+):)?([{grouping.SIMILARITIES}]+)(?:@(\w+))?", text)
        spaces, boundaries = features.COLOUR_SPACES, edges.Boundaries._fields
        space, letters, boundary = match.groups() if match else (None, "", None)
        allowed_spaces = spaces if "c" in letters else (None,)
        allowed_boundaries = (None, *boundaries) if "b" in letters else (None,)
        if not letters or space not in allowed_spaces or boundary not in allowed_boundaries:
            raise SettingError(
                "not a hierarchy of MCG",
                field="hierarchies",
                value=text,
                expected=f"[SPACE:]SIMILARITIES[@BOUNDARY]; SIMILARITIES letters of {grouping.SIMILARITIES}; "
                f"with c a SPACE of {', '.join(spaces)}; with b, if not mean, a BOUNDARY of {', '.join(boundaries)}",
            )
        return cls(space, letters, boundary or "mean")

    def weights(self) -> NDArray[np.float64]:
        """Return the weight (5,) of each of grouping.SIMILARITIES: how often its letter occurs."""
        return np.array([float(self.similarities.count(letter)) for letter in grouping.SIMILARITIES])


@dataclass(frozen=True)
class McgSettings:
    """Settings of MCG: boundary detector, sizes and hierarchies.

    The default hierarchies were chosen out of 29 by hand, guided by the gain of each in the best Jaccard index on every
    fourth of the images on which they are measured.
    """

    max_candidates: int = 2000
    """Candidates to keep per image, the best ones."""
    edges: Detector = "gradient"
    """Boundary detector: gradient (local colour gradients, needs no weights) or hed (a learned network)."""
    hed_weights: str | None = None
    """Path or URI of HED's weight file, which python -m jobs.get_hed_weights makes; only with edges hed."""
    min_leaf_px: int = 8
    """Superpixels of fewer pixels are joined to a neighbour."""
    max_leaves: int = 2000
    """Largest number of superpixels: neighbours are joined, weak borders and small superpixels first."""
    max_side_px: int = 1000
    """Images with a longer side are shrunk to it and segmented; the superpixel map is enlarged to the image's size."""
    duplicate_jaccard: float = 0.8
    """Drop a candidate whose Jaccard index with a better one exceeds this."""
    hierarchies: tuple[str, ...] = (
        "ssffb", "position:csfb", "lab:csfb", "sfb@coarse", "hue:ctsfb", "ab:cf", "rgi:ctsf", "sf", "hsv:csf",
        "hue:ctsf",
    )  # fmt: skip
    """Each [SPACE:]SIMILARITIES[@BOUNDARY]. SIMILARITIES: first letters of colour, texture, size, fill, border; a
    repeated letter weighs more. SPACE: colour space for c. BOUNDARY: mean or coarse, for b."""
    single_steps: int = 2**16
    """The regions of the first so many splits of each hierarchy are candidates."""
    pair_steps: int = 200
    """In the first so many splits, each new region joined with one neighbour is a candidate too."""
    triplet_steps: int = 50
    """In the first so many splits, each new region joined with two neighbours is a candidate too."""

    def __post_init__(self) -> None:
        for text in self.hierarchies:
            Tree.parse(text)
        for name, low, high in (
            ("max_candidates", 1, 2**31), ("min_leaf_px", 1, 2**31), ("max_leaves", 1, 2**13),
            ("max_side_px", 1, 2**15), ("duplicate_jaccard", 0, 1), ("single_steps", 0, 2**16),
            ("pair_steps", 0, self.single_steps), ("triplet_steps", 0, self.pair_steps),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise SettingError("out of range", field=name, value=getattr(self, name), expected=f"{low} to {high}")
        if not self.hierarchies:
            raise SettingError("MCG needs at least one hierarchy", field="hierarchies")
        if (self.edges == "hed") != (self.hed_weights is not None):
            has_weights = self.hed_weights is not None
            problem = "hed_weights has no effect unless edges is hed" if has_weights else "edges hed needs hed_weights"
            expected = "none" if has_weights else "the file that python -m jobs.get_hed_weights makes"
            raise SettingError(problem, field="hed_weights", value=self.hed_weights, expected=expected)


def identity(settings: McgSettings) -> dict[str, Any]:
    """Return the JSON values by which a build is known: the settings, with a hash of the weight file for its path.

    The same file in another place is the same build, and another file in the same place is another build.

    Raises:
        WeightsError: if the weight file can't be read.
    """
    values = asdict(settings)
    if settings.hed_weights is not None:
        try:
            values["hed_weights"] = "sha256:" + hashlib.sha256(storage.read_bytes(settings.hed_weights)).hexdigest()
        except (InputError, OSError) as error:
            problem = getattr(error, "problem", str(error))
            raise WeightsError("can't read HED's weights", file=settings.hed_weights, value=problem) from None
    return values


def detect(images: Sequence[NDArray[np.uint8]], settings: McgSettings) -> list[edges.Boundaries]:
    """Compute the boundary maps of RGB images (H, W, 3), at the size at which `mcg` segments them.

    Raises:
        WeightsError: if HED's weights can't be loaded.
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
        boundaries: boundary maps of the image from `detect`; None computes them here.
        image_id: id of the image.

    Raises:
        WeightsError: if HED's weights can't be loaded.
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
