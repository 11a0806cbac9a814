"""The order of GOP's candidates: a learned log-linear model of how densely objects' best ones lie among alike ones.

Fitted by Poisson regression on the candidates of the even images of a COCO and a VOC sample, before any suppression; an
object weighs its best Jaccard index (one of VOC four times), shared by all candidates within 0.02 of it. The terms are
those left of many after dropping the least significant, one at a time, while images left out of the fit lost nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from boxsup_dist.proposals.geodesic import Regions

# Term and its weight in the logarithm of the density.
_WEIGHTS = {
    "touched": -0.77,
    "size cubed": 0.66,
    "size times coarse": 1.81,
    "size times fill": -2.39,
    "size times copies": -0.42,
    "strength times fill": -3.7,
    "coarse times contour": 1.11,
    "contour squared": -0.74,
    "colour squared": 0.86,
    "inner colour": 1.44,
    "inner strength squared": -2.24,
}


class Borders(NamedTuple):
    """What parts neighbouring superpixels, 0 to about 1, mean along each pair's border; all float64 (E,)."""

    strength: np.ndarray  # boundary map
    coarse: np.ndarray  # coarse boundary map
    colour: np.ndarray  # difference of the superpixels' mean colours

    def sums(self, lengths: np.ndarray) -> np.ndarray:
        """Pixels along the borders, `lengths` (E,), and the three added up over them: float64 (E, 4)."""
        return np.stack([np.ones_like(lengths), *self], 1) * lengths[:, None]


def density(regions: Regions, copies: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
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
    return np.stack([_WEIGHTS[name] * values for name, values in terms.items()]).sum(0)


def _means(sums: np.ndarray) -> np.ndarray:
    """Means along the borders, (N, 3), of sums (N, 4) that begin with the borders' pixels; 0 where there is none."""
    return np.where(sums[:, :1] > 0.5, sums[:, 1:] / np.maximum(sums[:, :1], 1), 0)
