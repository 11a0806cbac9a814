"""The ranking of MCG's candidates, in two passes.

The first pass chooses which of about a hundred thousand candidates are examined. It orders them by the step after which
they appear; pairs and triplets come later, candidates with a strong border earlier.

The second pass is a learned log-linear model of the density of useful candidates: how densely the best candidates of
objects lie among candidates with the same properties. This density spreads a budget over object sizes by itself.

Near-duplicates are suppressed in the order of the second pass, so its model was fitted to the candidates that are left
after such a suppression: by Poisson regression, on the even images of a sample of COCO and one of VOC, with both
boundary detectors. An object weighs 1, shared by its best candidates. `jobs.proposal_quality` reports even and odd
images separately.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.proposals.combining import Pool

# Weight of each term in the logarithm of the density.
_WEIGHTS = {
    "step": 0.96,
    "step squared": -0.38,
    "pair": -2.04,
    "pair's step": 1.04,
    "pair's size": 0.78,
    "triplet": -1.33,
    "triplet's step": -1.24,
    "triplet's size": 1.42,
    "size": -0.13,
    "size squared": -0.1,
    "step times size": 1.75,
    "outer": 2.06,
    "outer's logarithm": 0.79,
    "outer times size": 1.69,
    "inner": 1.04,
    "contour": -0.48,
    "fill": 1.03,
    "sides touched": -0.69,
    "all sides touched": -0.68,
    "copies": 0.39,
    "elongation": -0.61,
}


def first_order(pool: Pool) -> NDArray[np.intp]:
    """Return the indices (P,) of the candidates in the order of the first pass."""
    later = np.array([0, 2, 3])[pool.parts - 1] - 0.2 * np.log(pool.copies)
    return np.argsort(np.log1p(pool.steps) + later - pool.outer, kind="stable")


def by_density(pool: Pool, chosen: NDArray[np.intp], shape: tuple[int, int]) -> NDArray[np.intp]:
    """Return the indices `chosen` of candidates in the order of the second pass, for a superpixel map of `shape`."""
    some = Pool._make(values[chosen] for values in pool)
    return chosen[np.argsort(-density(some, shape), kind="stable")]


def density(pool: Pool, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the logarithm (P,) of the density of useful candidates, up to a constant; higher is better.

    Args:
        pool: P candidates.
        shape: (H, W) of the superpixel map.
    """
    height, width = shape
    x0, y0, x1, y1 = pool.boxes.T.astype(np.float32)
    area = pool.areas.astype(np.float32)
    size = np.log(area / (height * width)) / 5
    step = np.log1p(pool.steps.astype(np.float32)) / 5
    pair, triplet = (pool.parts == 2).astype(np.float32), (pool.parts == 3).astype(np.float32)
    touched = (x0 <= 0).astype(np.float32) + (y0 <= 0) + (x1 >= width) + (y1 >= height)
    terms: dict[str, NDArray[np.floating] | NDArray[np.bool_]] = {
        "step": step,
        "step squared": step**2,
        "pair": pair,
        "pair's step": pair * step,
        "pair's size": pair * size,
        "triplet": triplet,
        "triplet's step": triplet * step,
        "triplet's size": triplet * size,
        "size": size,
        "size squared": size**2,
        "step times size": step * size,
        "outer": pool.outer,
        "outer's logarithm": np.log(pool.outer + np.float32(0.02)),
        "outer times size": pool.outer * size,
        "inner": pool.inner,
        "contour": np.log((pool.length + 1) / np.sqrt(area)),
        "fill": area / ((x1 - x0) * (y1 - y0)),
        "sides touched": touched,
        "all sides touched": touched == 4,
        "copies": np.log(pool.copies.astype(np.float32)),
        "elongation": np.abs(np.log((x1 - x0) / (y1 - y0))),
    }
    total = np.zeros(len(area), np.float32)
    for name, values in terms.items():
        total += np.float32(_WEIGHTS[name]) * values
    return total
