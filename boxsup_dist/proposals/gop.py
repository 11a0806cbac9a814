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
from boxsup_dist.schema import Proposals


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
    num_seeds: int = 150
    """Seeds placed for each of the distances."""
    level_ratio: float = 1.15
    """A level is critical if no region up to this much larger or smaller has a stronger contour."""
    duplicate_jaccard: float = 0.85
    """Candidates that overlap a better one by more are ranked behind all others."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_candidates", 1, 2**31), ("min_leaf_px", 1, 2**31), ("max_leaves", 1, 2**16),
            ("max_side_px", 1, 2**15), ("num_seeds", 1, 2**16), ("level_ratio", 1, np.inf), ("duplicate_jaccard", 0, 1),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise SettingError("out of range", field=name, value=getattr(self, name), expected=f"{low} to {high}")
