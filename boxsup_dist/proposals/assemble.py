"""The first and the last step of every native method: shrink a large image, and make Proposals of ranked segments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxsup_dist.data.schema import Proposals
from boxsup_dist.data.superpixels import superpixel_extents, union_boxes
from boxsup_dist.proposals.membership import Membership


def shrink(image: NDArray[np.uint8], max_side_px: int) -> NDArray[np.uint8]:
    """Shrink an RGB image (H, W, 3) so that its longer side has at most `max_side_px` pixels."""
    height, width = image.shape[:2]
    factor = max_side_px / max(height, width)
    if factor >= 1:
        return np.ascontiguousarray(image)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _enlarge(superpixels: NDArray[np.uint16], height: int, width: int) -> NDArray[np.uint16]:
    """Enlarge a superpixel map by nearest neighbour; every id is kept."""
    rows = np.arange(height) * superpixels.shape[0] // height
    columns = np.arange(width) * superpixels.shape[1] // width
    enlarged: NDArray[np.uint16] = superpixels[rows[:, None], columns]
    return enlarged


def ranked_proposals(
    image_id: str,
    shape: tuple[int, int],
    superpixels: NDArray[np.uint16],
    num_superpixels: int,
    membership: Membership,
    numbering: NDArray[np.integer],
) -> Proposals:
    """Make Proposals of segments that are ordered best first; the objectness falls linearly with the rank.

    Args:
        image_id: Id of the image.
        shape: (H, W) of the image.
        superpixels: Superpixel map of the image or of the image shrunk; it is enlarged to `shape`.
        num_superpixels: S.
        membership: The P segments, best first.
        numbering: (S,), all superpixel ids in the order of their new ids. The depth-first order of a hierarchy
            compresses best: the superpixels of most segments are then a few runs of ids.
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
