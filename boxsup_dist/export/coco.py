"""The COCO annotation file of a set of label maps: images, categories, and annotations with masks.

`pycocotools.coco.COCO` reads it; the format is described at https://cocodataset.org/#format-data. An image's id is the
number in its name if that is a COCO name (000000397133), otherwise the name. A category's id is the network's class id.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from boxsup_dist.data import rle
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.io import storage

Annotation = dict[str, Any]
"""JSON of one annotation, as COCO defines it, without `id` and `image_id`."""


class CocoImage(NamedTuple):
    """One image of an annotation file."""

    name: str
    height: int
    width: int
    annotations: list[Annotation]


def coco_image_id(name: str) -> int | str:
    """Id of an image in the file: 397133 for `val2017/000000397133` or `COCO_val2014_000000397133`, else the name."""
    found = re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", posixpath.basename(name))
    return int(found[1]) if found else name


def region(mask: NDArray[np.bool_], category_id: int, *, crowd: bool = False) -> Annotation:
    """Annotation of a mask (H, W): category_id, segmentation (size and counts), area in pixels, iscrowd."""
    counts = rle.encode(mask)
    return {
        "category_id": category_id,
        "segmentation": {"size": list(mask.shape), "counts": counts.decode()},
        "area": int(np.count_nonzero(mask)),
        "iscrowd": int(crowd),
    }


def class_regions(label_map: NDArray[np.uint8]) -> list[Annotation]:
    """Annotations of a label map (H, W): one per class in it, with the tight bbox (x, y, width, height)."""
    regions = []
    for class_id in np.unique(label_map).tolist():
        if class_id not in (BACKGROUND, IGNORE_INDEX):
            annotation = region(label_map == class_id, class_id)
            bbox = coco_mask.toBbox(annotation["segmentation"]).tolist()
            regions.append({**annotation, "bbox": bbox})
    return regions


def write_coco(uri: str, images: Iterable[CocoImage], class_names: Sequence[str]) -> int:
    """Write an annotation file, with one image at a time in memory.

    Args:
        uri: The file to write.
        images: The images, in the order of the file.
        class_names: Names of the C classes; class 0, the background, is no category.

    Returns:
        Number of annotations.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names) if i != BACKGROUND]
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coco.json"
        with path.open("w") as file, (Path(folder) / "images.json").open("w+") as listed:
            file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
            for number, image in enumerate(images):
                image_id = coco_image_id(image.name)
                entry = {"id": image_id, "file_name": image.name, "height": image.height, "width": image.width}
                listed.write((",\n" if number else "\n") + json.dumps(entry))
                for annotation in image.annotations:
                    count += 1
                    line = json.dumps({"id": count, "image_id": image_id, **annotation}, allow_nan=False)
                    file.write((",\n" if count > 1 else "\n") + line)
            file.write('\n],\n"images": [')
            listed.seek(0)
            shutil.copyfileobj(listed, file)
            file.write("\n]}\n")
        storage.write_file(uri, path)
    return count
