"""Small pictures for the proposal tests."""

from collections.abc import Sequence

import numpy as np

from boxsup_dist.data.schema import Proposals
from boxsup_dist.proposals import quality


def blobs(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """Noisy discs of several colours on a noisy ground, uint8 RGB."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 90.0)
    for _ in range(7):
        y, x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(5, 18)
        image[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = rng.uniform(0, 255, 3)
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def drawn(proposals: Proposals) -> np.ndarray:
    """Every candidate's mask, bool (P, H, W), the slow way."""
    masks = [np.isin(proposals.superpixels, proposals.members(j)) for j in range(len(proposals))]
    return np.array(masks).reshape(-1, *proposals.superpixels.shape)


def jaccard(proposals: Proposals, masks: Sequence[np.ndarray], valid: np.ndarray | None = None) -> np.ndarray:
    """Jaccard index of every candidate with every mask, (P, K)."""
    shared, union = quality.count_pixels(proposals, masks, valid)
    return shared / np.maximum(union, 1)
