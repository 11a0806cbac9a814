"""The order of MCG's candidates, in two passes.

The first goes by the steps of the hierarchies, pairs and triplets later, strong borders earlier, and says which of a
hundred thousand are looked at. The second is a learned log-linear model of how densely the best candidates of objects
lie among candidates of like properties, which spreads a budget over object sizes by itself. Near-duplicates are
suppressed in that order, so it was fitted to what such a suppression leaves: Poisson regression on the even images of a
COCO and a VOC sample, with both boundary detectors; an object weighs 1, shared by its best candidates.
`jobs.proposal_quality` tells even and odd images apart.
"""

from __future__ import annotations

import numpy as np

from boxsup_dist.proposals.combining import Pool

# Term and its weight in the logarithm of the density.
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


def first_order(pool: Pool) -> np.ndarray:
    """Candidates by the steps they appear after, int64 (P,)."""
    later = np.array([0, 2, 3])[pool.parts - 1] - 0.2 * np.log(pool.copies)
    return np.argsort(np.log1p(pool.steps) + later - pool.outer, kind="stable")


def by_density(pool: Pool, chosen: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Candidates `chosen` from the pool, int64 (N,), densest first; `shape` is the image's (H, W)."""
    some = Pool(*(values[chosen] for values in pool))
    return chosen[np.argsort(-density(some, shape), kind="stable")]


def density(pool: Pool, shape: tuple[int, int]) -> np.ndarray:
    """Logarithm of the density of useful candidates at every candidate of the pool, float32 (P,).

    `shape` is the image's (H, W).
    """
    height, width = shape
    x0, y0, x1, y1 = pool.boxes.T.astype(np.float32)
    area = pool.areas.astype(np.float32)
    size = np.log(area / (height * width)) / 5
    step = np.log1p(pool.steps.astype(np.float32)) / 5
    pair, triplet = (pool.parts == 2).astype(np.float32), (pool.parts == 3).astype(np.float32)
    touched = (x0 <= 0).astype(np.float32) + (y0 <= 0) + (x1 >= width) + (y1 >= height)
    terms = {
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
