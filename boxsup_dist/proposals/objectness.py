"""The learned order of MCG's candidates.

How densely useful candidates lie among those of like properties: a log-linear model, fitted by Poisson regression.
"""

from __future__ import annotations

import numpy as np

from boxsup_dist.proposals.combining import Pool


def describe(pool: Pool, num_pixels: int) -> dict[str, np.ndarray]:
    """What the order depends on, float32 (P,) each; `num_pixels` of the image."""
    width, height = (pool.boxes[:, 2:] - pool.boxes[:, :2]).T.astype(np.float32)
    far = pool.boxes[:, 2:].max(0, initial=1)
    touched = (pool.boxes[:, :2] <= 0).sum(1) + (pool.boxes[:, 2:] >= far).sum(1)
    areas = pool.areas.astype(np.float32)
    return {
        "step": np.log1p(pool.steps.astype(np.float32)),
        "area": np.log(areas / num_pixels),
        "outer": pool.outer,
        "inner": pool.inner,
        "roundness": np.log(np.sqrt(areas) / (pool.length + 1)),
        "fill": areas / (width * height),
        "touched": touched.astype(np.float32),
        "copies": np.log(pool.copies.astype(np.float32)),
        "aspect": np.abs(np.log(width / height)),
    }


def order(pool: Pool, num_pixels: int) -> np.ndarray:
    """Candidates of the pool, best first, int64 (P,)."""
    found = describe(pool, num_pixels)
    cost = found["step"] + np.array([0, 2, 3])[pool.parts - 1] - 2 * found["outer"] - 0.3 * found["copies"]
    return np.argsort(cost, kind="stable")
