"""The superpixels of MCG and GOP: an image cut by its colours and a boundary map, then joined to few enough regions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.proposals.superpixels import felzenszwalb, overlay, reduce, region_graph, smooth, watershed

FULL_CONTRAST = 60.0  # distance of colours, channels in 0..255, that counts as the strongest border


def oversegment(
    image: NDArray[np.uint8],
    lab: NDArray[np.float32],
    boundaries: NDArray[np.float32],
    min_px: int,
    max_superpixels: int,
    *,
    learned: bool,
) -> tuple[NDArray[np.uint16], int]:
    """Make the superpixels of an image.

    Args:
        image: RGB (H, W, 3).
        lab: The image in Lab, smoothed, (H, W, 3).
        boundaries: Boundary map (H, W), 0 to 1.
        min_px: Superpixels of fewer pixels are joined to a neighbour.
        max_superpixels: Neighbours are joined until at most this many are left.
        learned: Whether the boundary map is a learned one. The basins of a learned map are good superpixels. Those of
            colour gradients are worse than Felzenszwalb's regions, so only Felzenszwalb's regions are used then.

    Returns:
        Superpixel map (H, W) and the number of superpixels.
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
