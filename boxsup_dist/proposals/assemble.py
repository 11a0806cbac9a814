"""What every native method begins and ends with: an image of bounded size, and ranked segments as Proposals."""

from __future__ import annotations

import numpy as np
from PIL import Image

from boxsup_dist.data.schema import Proposals
from boxsup_dist.data.superpixels import superpixel_extents, union_boxes


def shrink(image: np.ndarray, max_side_px: int) -> np.ndarray:
    """The image, uint8 RGB (H, W, 3), with its longer side at most max_side_px."""
    height, width = image.shape[:2]
    factor = max_side_px / max(height, width)
    if factor >= 1:
        return np.ascontiguousarray(image)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _enlarge(superpixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest-neighbour enlargement; every id is kept."""
    rows = np.arange(height) * superpixels.shape[0] // height
    columns = np.arange(width) * superpixels.shape[1] // width
    return superpixels[rows[:, None], columns]


def ranked_proposals(
    image_id: str,
    shape: tuple[int, int],
    superpixels: np.ndarray,
    num_superpixels: int,
    membership: tuple[np.ndarray, np.ndarray],
    numbering: np.ndarray,
) -> Proposals:
    """Proposals from segments in their order, best first; objectness falls linearly with the rank.

    `superpixels` may be smaller than the image's `shape` (H, W); `membership` is indptr (P + 1,) and superpixel ids.
    `numbering` is all superpixels, (S,), in the order of their new ids: the depth-first order of a hierarchy, in which
    the superpixels of most segments are a few runs, compresses best.
    """
    new_id = np.empty(num_superpixels, np.uint16)
    new_id[numbering] = np.arange(num_superpixels)
    superpixels = new_id[superpixels]
    indptr, indices = membership
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)) * num_superpixels
    indices = (np.sort(rows + new_id[indices]) % num_superpixels).astype(np.uint16)
    if superpixels.shape != shape:
        superpixels = _enlarge(superpixels, *shape)
    extents = superpixel_extents(superpixels, num_superpixels)
    return Proposals(
        image_id=image_id,
        superpixels=superpixels,
        num_superpixels=num_superpixels,
        indptr=indptr,
        indices=indices,
        objectness=np.linspace(1, 0, len(indptr) - 1, endpoint=False, dtype=np.float32),
        boxes=union_boxes(extents, indptr, indices).astype(np.uint16),
    )
