"""A synthetic data set of any number of images: small images with as many candidates as photographs have.

Everything is a function of (seed, index). A few base scenes hold the work: a superpixel map and unions of neighbouring
superpixels whose sizes are spread as MCG's. An image is a base, mirrored or not, with its candidates in another order,
its own colours and its own boxes.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

from boxsup_dist.data.schema import VOC_CLASSES, Proposals, Record
from boxsup_dist.data.superpixels import superpixel_extents, union_boxes
from boxsup_dist.randomness import generator
from boxsup_dist.records.reader import Annotation, ListEntry, make_record

SOURCE = "scale"
NUM_BASES = 16
NUM_CANDIDATES = 2000
CELL_PX = 2.6  # mean side of a superpixel: several hundred on an image of 64 to 96 px
MEDIAN_MEMBERS, SPREAD = 8.0, 2.2  # of the log-normal number of superpixels of a candidate
MAX_BOXES = 9  # 1 to 9, 5 on average
MIN_BOX_MEMBERS = 12  # a box is drawn around a candidate of this many superpixels or more
JPEG_QUALITY = 90


def entries(num_images: int) -> list[ListEntry]:
    """The list of images, as a reader of a real data set has one."""
    return [ListEntry(f"{index:07d}", "train") for index in range(num_images)]


def index_of(image_id: str) -> int:
    """Place of an image in the data set."""
    return int(image_id.partition("/")[2])


def scene_record(entry: ListEntry, seed: int) -> Record:
    """Record of one image with 1 to 9 boxes, each a few pixels off a candidate's tight box; without masks."""
    rng = generator(seed, SOURCE, "record", entry.name)
    found = scene_proposals(seed, f"{SOURCE}/{entry.name}")
    colours = rng.integers(0, 256, (found.num_superpixels, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours[found.superpixels]).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    height, width = found.superpixels.shape
    count = int(rng.integers(1, MAX_BOXES + 1))
    chosen = rng.choice(np.flatnonzero(np.diff(found.indptr) >= MIN_BOX_MEMBERS), count, replace=False)
    boxes = found.boxes[chosen].astype(np.float32)
    boxes += rng.integers(0, 3, boxes.shape) * np.array([-1, -1, 1, 1])
    boxes = np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
    class_ids = rng.integers(1, len(VOC_CLASSES), count).astype(np.int32)
    annotation = Annotation(boxes, class_ids, np.zeros(count, bool))
    return make_record(entry.name, entry.split, SOURCE, (buffer.getvalue(), height, width), annotation, None, None)


def scene_proposals(seed: int, image_id: str) -> Proposals:
    """Candidates of one image."""
    base = _base(seed, index_of(image_id) % NUM_BASES)
    rng = generator(seed, SOURCE, "proposals", image_id)
    mirrored, upside_down = rng.integers(0, 2, 2).tolist()
    order = rng.permutation(len(base))
    boxes = base.boxes[order]
    superpixels, (height, width) = base.superpixels, base.superpixels.shape
    if mirrored:
        superpixels = superpixels[:, ::-1]
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    if upside_down:
        superpixels = superpixels[::-1]
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    lengths = np.diff(base.indptr)[order]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    taken = np.repeat(base.indptr[order] - indptr[:-1], lengths) + np.arange(indptr[-1])
    return Proposals(
        image_id=image_id,
        superpixels=np.ascontiguousarray(superpixels),
        num_superpixels=base.num_superpixels,
        indptr=indptr,
        indices=base.indices[taken],
        objectness=np.sort(rng.random(len(base), np.float32))[::-1],
        boxes=boxes,
    )


@functools.cache
def _base(seed: int, number: int) -> Proposals:
    """Voronoi cells of a jittered grid, and the cells inside random ellipses around one of them."""
    rng = generator(seed, SOURCE, "base", number)
    height, width = rng.integers(64, 97, 2).tolist()
    grid = np.mgrid[0:height:CELL_PX, 0:width:CELL_PX].reshape(2, -1).T
    pixels = np.indices((height, width)).reshape(2, -1).T
    nearest = cKDTree(grid + rng.uniform(0, CELL_PX, grid.shape)).query(pixels)[1]
    kept, ids = np.unique(nearest, return_inverse=True)  # a cell may own no pixel
    superpixels = ids.reshape(height, width).astype(np.uint16)
    centres = np.stack([np.bincount(ids, pixels[:, axis]) for axis in (0, 1)], 1) / np.bincount(ids)[:, None]

    sizes = np.minimum(MEDIAN_MEMBERS * np.exp(rng.normal(0, SPREAD, NUM_CANDIDATES)), len(kept))
    stretch, angle = np.exp(rng.normal(0, 0.4, NUM_CANDIDATES)), rng.uniform(0, np.pi, NUM_CANDIDATES)
    offsets = centres[None] - centres[rng.integers(0, len(kept), NUM_CANDIDATES)][:, None]
    y, x = offsets[..., 0], offsets[..., 1]
    along = (y * np.cos(angle)[:, None] + x * np.sin(angle)[:, None]) * stretch[:, None]
    across = (x * np.cos(angle)[:, None] - y * np.sin(angle)[:, None]) / stretch[:, None]
    distances = along**2 + across**2
    inside = distances <= (sizes * height * width / len(kept) / np.pi)[:, None]
    indptr = np.concatenate([[0], np.cumsum(inside.sum(1))])
    indices = np.nonzero(inside)[1].astype(np.uint16)
    extents = superpixel_extents(superpixels, len(kept))
    return Proposals(
        image_id="",
        superpixels=superpixels,
        num_superpixels=len(kept),
        indptr=indptr,
        indices=indices,
        objectness=np.zeros(NUM_CANDIDATES, np.float32),
        boxes=union_boxes(extents, indptr, indices).astype(np.uint16),
    )
