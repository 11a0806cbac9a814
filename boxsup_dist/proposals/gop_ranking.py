"""The ranking of GOP's candidates: a learned log-linear model of the density of useful candidates.

The density says how densely the best candidates of objects lie among candidates with the same properties. The weights
were fitted by Poisson regression on all candidates of the even images of a sample of COCO and one of VOC, before any
suppression of near-duplicates. An object weighs its best Jaccard index (an object of VOC four times), shared by all
candidates within 0.02 of that index. Of many terms, the least significant was dropped one at a time, as long as images
outside the fit lost nothing; these are left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.proposals.geodesic import Regions

# Weight of each term in the logarithm of the density.
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
    """The differences of neighbouring superpixels, 0 to about 1, for each of E pairs; all arrays are (E,)."""

    strength: NDArray[np.float64]  # mean of the boundary map along the border
    coarse: NDArray[np.float64]  # mean of the coarse boundary map along the border
    colour: NDArray[np.float64]  # distance of the superpixels' mean colours

    def sums(self, lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the pixels of each border, `lengths` (E,), and the three values summed over them, (E, 4)."""
        sums: NDArray[np.float64] = np.stack([np.ones_like(lengths), *self], 1) * lengths[:, None]
        return sums


def density(regions: Regions, copies: NDArray[np.integer], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the logarithm (N,) of the density of useful candidates, up to a constant; higher is better.

    Args:
        regions: N regions whose borders have the sums of `Borders.sums`.
        copies: (N,), number of levels that are this region.
        shape: (H, W) of the superpixel map.
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
    total: NDArray[np.float64] = np.stack([_WEIGHTS[name] * values for name, values in terms.items()]).sum(0)
    return total


def _means(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means (N, 3) along borders from sums (N, 4) that begin with the number of pixels; 0 without pixels."""
    return np.where(sums[:, :1] > 0.5, sums[:, 1:] / np.maximum(sums[:, :1], 1), 0)
