"""The superpixels of MCG and GOP: where colours and a boundary map part an image, joined until few enough are left."""

from __future__ import annotations

import numpy as np

from boxsup_dist.proposals.superpixels import felzenszwalb, overlay, reduce, region_graph, smooth, watershed

FULL_CONTRAST = 60.0  # distance of colours in 0..255 that counts as the strongest border


def oversegment(
    image: np.ndarray, lab: np.ndarray, boundaries: np.ndarray, min_px: int, max_superpixels: int, *, learned: bool
) -> tuple[np.ndarray, int]:
    """Superpixels of an image, uint8 RGB (H, W, 3): ids uint16 (H, W) and their count.

    `lab` is the image in Lab, smoothed, and `boundaries` a boundary map, both float32. The basins of a learned boundary
    map are good superpixels. Those of colour gradients are worse than Felzenszwalb's regions, so these are taken alone.
    """
    if learned:
        maps = [watershed(boundaries), felzenszwalb(lab, 200, min_px)]
    else:
        maps = [felzenszwalb(channels, 50, min_px) for channels in (lab, smooth(image, 0.8))]
    fine, count = overlay(maps, lab, min_px)
    graph = region_graph(fine, count)
    contrast = np.minimum(graph.contrast(lab) / FULL_CONTRAST + graph.strength(boundaries), 1)
    groups = reduce(graph, np.bincount(fine.ravel()), contrast, max_superpixels)
    return groups[fine].astype(np.uint16), int(groups.max()) + 1
