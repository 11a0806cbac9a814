"""YOLO's segmentation files: a text file per image, a line per object, all numbers as shares of the image.

OUT/yolo/data.yaml               names of the classes, from 0 in the order of the input
OUT/yolo/labels/FILE_NAME.txt    class x y x y ...; empty without an object

https://docs.ultralytics.com/datasets/segment/ describes them. A line is one polygon: the parts of an object are joined
by slits without width, as Ultralytics' own converter from COCO does.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator

import yaml

from boxsup_dist.export.coco import CocoImage, CocoNames, objects
from boxsup_dist.export.polygons import join
from boxsup_dist.io import storage


def pass_yolo(out: str, images: Iterable[CocoImage], names: CocoNames) -> Iterator[CocoImage]:
    """Write the files below OUT/yolo, and yield each image when it is written."""
    folder = storage.join(out, "yolo")
    classes = {class_id - 1: category.name for class_id, category in sorted(names.categories.items())}
    content = {"path": ".", "train": "images", "val": "images", "names": classes}
    listed = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(folder, "data.yaml"), listed.encode())
    for image in images:
        lines = []
        for class_id, rings in objects(image):
            shares = (join(rings) / (image.width, image.height)).ravel()
            lines.append(" ".join([str(class_id - 1), *(f"{value:.6f}" for value in shares)]) + "\n")
        path = posixpath.splitext(names.file_name(image))[0] + ".txt"
        storage.write_bytes(storage.join(folder, "labels", path), "".join(lines).encode())
        yield image
