"""The order of GOP's candidates: a learned log-linear model of how densely objects' best candidates lie among alike ones.

Fitted by Poisson regression on the candidates of the even images of a COCO and a VOC sample, before any suppression; an
object weighs its best Jaccard index, shared by all candidates within 0.02 of it. The terms are what was left of 52
after dropping the least significant ones, one at a time, while the likelihood of images left out of the fit rose.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from boxsup_dist.proposals.edges import Detector
from boxsup_dist.proposals.geodesic import Regions

# Term and its weight in the logarithm of the density, by the detector of the boundaries.
_WEIGHTS = {
    "touched": {"gradient": -0.77, "hed": -0.68},
    "size cubed": {"gradient": 0.66, "hed": 0.61},
    "size times coarse": {"gradient": 1.81, "hed": 1.05},
    "size times fill": {"gradient": -2.39, "hed": -2.09},
    "size times copies": {"gradient": -0.42, "hed": -0.36},
    "strength times fill": {"gradient": -3.70, "hed": -0.28},
    "coarse times contour": {"gradient": 1.11, "hed": 2.77},
    "contour squared": {"gradient": -0.74, "hed": -0.87},
    "colour squared": {"gradient": 0.86, "hed": 0.36},
    "inner colour": {"gradient": 1.44, "hed": 0.97},
    "inner strength squared": {"gradient": -2.24, "hed": -2.03},
}


class Borders(NamedTuple):
    """What parts neighbouring superpixels, 0 to about 1, mean along each pair's border; all float64 (E,)."""

    strength: np.ndarray  # boundary map
    coarse: np.ndarray  # coarse boundary map
    colour: np.ndarray  # difference of the superpixels' mean colours

    def sums(self, lengths: np.ndarray) -> np.ndarray:
        """Pixels along the borders, `lengths` (E,), and the three added up over them: float64 (E, 4)."""
        return np.stack([np.ones_like(lengths), *self], 1) * lengths[:, None]


def density(regions: Regions, copies: np.ndarray, shape: tuple[int, int], detector: Detector) -> np.ndarray:
    """Logarithm of the density of useful candidates, up to a constant: float64 (N,).

    `regions` have the sums of `Borders.sums`; `copies`, int (N,), counts the levels that are this region; `shape` is
    the image's (H, W).
    """
    height, width = shape
    x0, y0, x1, y1 = regions.boxes.T
    size = np.log(regions.areas / (height * width)) / 5
    fill = regions.areas / ((x1 - x0) * (y1 - y0))
    contour = np.log((regions.outer[:, 0] + 1) / np.sqrt(regions.areas))
    strength, coarse, colour = _means(regions.outer).T
    inner_strength, _, inner_colour = _means(regions.inner).T
    terms = {
        "touched": (x0 <= 0).astype(int) + (y0 <= 0) + (x1 >= width) + (y1 >= height),
        "size cubed": size**3,
        "size times coarse": size * coarse,
        "size times fill": size * fill,
        "size times copies": size * np.log(copies),
        "strength times fill": strength * fill,
        "coarse times contour": coarse * contour,
        "contour squared": contour**2,
        "colour squared": colour**2,
        "inner colour": inner_colour,
        "inner strength squared": inner_strength**2,
    }
    return np.stack([_WEIGHTS[name][detector] * values for name, values in terms.items()]).sum(0)


def _means(sums: np.ndarray) -> np.ndarray:
    """Means along the borders, (N, 3), of sums (N, 4) that begin with the borders' pixels; 0 where there is none."""
    return np.where(sums[:, :1] > 0.5, sums[:, 1:] / np.maximum(sums[:, :1], 1), 0)
