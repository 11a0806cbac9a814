"""The order of MCG's candidates, in two passes.

The first goes by the steps of the hierarchies, pairs and triplets later, strong borders earlier; near-duplicates are
suppressed in it. What survives is ordered by a learned log-linear model of how densely objects' best candidates lie
among candidates of like properties, which spreads a budget over object sizes by itself. Fitted by Poisson regression on
the survivors of every fourth image of a COCO and a VOC sample; an object weighs 1, shared by its best candidates.
"""

from __future__ import annotations

import numpy as np

from boxsup_dist.proposals.combining import Pool

# Term and its weight in the logarithm of the density.
_WEIGHTS = {
    "step": 0.61,
    "step squared": 1.2,
    "pair": -1.24,
    "pair's step": 0.41,
    "triplet": -1.38,
    "triplet's step": 0.31,
    "size": -1.11,
    "size squared": -1.04,
    "step times size": 2.89,
    "outer": 2.76,
    "inner": 0.47,
    "contour": -0.83,
    "fill": 0.25,
    "sides touched": -0.82,
    "all sides touched": -3.07,
    "copies": 0.16,
    "elongation": -0.66,
    "rank": -0.23,
}


def first_order(pool: Pool) -> np.ndarray:
    """Candidates by the steps they appear after, int64 (P,)."""
    later = np.array([0, 2, 3])[pool.parts - 1] - 0.2 * np.log(pool.copies)
    return np.argsort(np.log1p(pool.steps) + later - pool.outer, kind="stable")


def density(pool: Pool, chosen: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Logarithm of the density of useful candidates at those `chosen` in the first order, int64 (N,): float32 (N,).

    `shape` is the image's (H, W).
    """
    height, width = shape
    x0, y0, x1, y1 = pool.boxes[chosen].T.astype(np.float32)
    area = pool.areas[chosen].astype(np.float32)
    size = np.log(area / (height * width)) / 5
    step = np.log1p(pool.steps[chosen].astype(np.float32)) / 5
    pair, triplet = (pool.parts[chosen] == 2), (pool.parts[chosen] == 3)
    touched = (x0 <= 0).astype(int) + (y0 <= 0) + (x1 >= width) + (y1 >= height)
    terms = {
        "step": step,
        "step squared": step**2,
        "pair": pair,
        "pair's step": pair * step,
        "triplet": triplet,
        "triplet's step": triplet * step,
        "size": size,
        "size squared": size**2,
        "step times size": step * size,
        "outer": pool.outer[chosen],
        "inner": pool.inner[chosen],
        "contour": np.log((pool.length[chosen] + 1) / np.sqrt(area)),
        "fill": area / ((x1 - x0) * (y1 - y0)),
        "sides touched": touched,
        "all sides touched": touched == 4,
        "copies": np.log(pool.copies[chosen]),
        "elongation": np.abs(np.log((x1 - x0) / (y1 - y0))),
        "rank": np.log(np.arange(len(chosen)) + 20),
    }
    return np.stack([_WEIGHTS[name] * values for name, values in terms.items()]).sum(0, dtype=np.float32)
