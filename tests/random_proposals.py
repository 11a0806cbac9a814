"""Random proposals: Voronoi superpixels and unions of neighbouring ones, made from a seed alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import Proposals


def random_superpixels(rng: np.random.Generator, height: int, width: int, num_superpixels: int) -> NDArray[np.uint16]:
    """uint16 (H, W): every pixel has the id of the nearest of `num_superpixels` random centres; ids may be absent."""
    centres = rng.uniform((0, 0), (height, width), (num_superpixels, 2))
    y, x = np.mgrid[:height, :width]
    distance = (y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2
    nearest: NDArray[np.uint16] = distance.argmin(axis=2).astype(np.uint16)
    return nearest


def random_proposals(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    num_superpixels: int = 12,
    num_proposals: int = 20,
    image_id: str = "test/0",
) -> Proposals:
    """Proposals of 1 to all superpixels of the image, some of them twice. Ids that own no pixel are never used."""
    superpixels = random_superpixels(rng, height, width, num_superpixels)
    present = np.unique(superpixels)
    members = [
        np.sort(rng.choice(present, rng.integers(1, len(present) + 1), replace=False)) for _ in range(num_proposals)
    ]
    members[1::7] = members[: len(members[1::7])]  # equal candidates: their costs tie
    return proposals_of(superpixels, num_superpixels, members, image_id)


def proposals_of(
    superpixels: NDArray[np.uint16],
    num_superpixels: int,
    members: list[NDArray[np.uint16]],
    image_id: str = "test/0",
) -> Proposals:
    """Proposals with these superpixel ids, their boxes drawn the slow way."""
    boxes = np.empty((len(members), 4), np.uint16)
    for j, ids in enumerate(members):
        rows, columns = np.nonzero(np.isin(superpixels, ids))
        boxes[j] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return Proposals(
        image_id=image_id,
        superpixels=superpixels,
        num_superpixels=num_superpixels,
        indptr=np.cumsum([0] + [len(ids) for ids in members]),
        indices=np.concatenate([np.empty(0, np.uint16), *members]).astype(np.uint16),
        objectness=np.linspace(1, 0, len(members), endpoint=False, dtype=np.float32),
        boxes=boxes,
    )


def areas_in(proposals: Proposals, box: NDArray[np.floating]) -> NDArray[np.int64]:
    """Pixels that every superpixel has inside a box, (S,), counted one by one."""
    x0, y0, x1, y1 = pixel_box(box, *proposals.superpixels.shape)
    inside = proposals.superpixels[y0:y1, x0:x1]
    return np.array([(inside == superpixel).sum() for superpixel in range(proposals.num_superpixels)])
