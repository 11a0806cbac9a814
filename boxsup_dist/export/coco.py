"""The COCO annotation file of a set of label maps: images, categories, and annotations with masks.

`pycocotools.coco.COCO` and records/coco read it; https://cocodataset.org/#format-data describes the format. `CocoNames`
says which ids and file names its images and categories have. A label map has no score, so every region of a prediction
has score 1; COCO(...).loadRes takes the list of these annotations.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from boxsup_dist.data import rle
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.export.polygons import Ring, polygons
from boxsup_dist.io import storage

Annotation = dict[str, Any]
"""JSON of one annotation, as COCO defines it, without `id` and `image_id`."""


class CocoImage(NamedTuple):
    """One image of an annotation file."""

    name: str
    ending: str  # of its file, such as ".jpg"
    height: int
    width: int
    annotations: list[Annotation]


class ImagePlace(NamedTuple):
    """Id and file name of an image in an annotation file."""

    id: int
    file_name: str
    has_ending: bool  # False: the ending of the image's file is to be added


class Category(NamedTuple):
    """Id and name of a category in an annotation file."""

    id: int
    name: str


@dataclass(frozen=True)
class CocoNames:
    """What images and classes are called in an annotation file."""

    images: Mapping[str, ImagePlace]  # by the name of the image
    categories: Mapping[int, Category]  # by the class id

    def file_name(self, image: CocoImage) -> str:
        """File name of an image, with its ending."""
        place = self.images[image.name]
        return place.file_name + ("" if place.has_ending else image.ending)

    @classmethod
    def own(cls, names: Sequence[str], class_names: Sequence[str], *, have_source: bool) -> CocoNames:
        """Names of our own: an image has the number in its name if all have one, as in COCO, else 1, 2, 3, ...

        Args:
            names: The images, in order: `val2017/000000397133` and `COCO_val2014_000000397133` have a number.
            class_names: Names of the C classes; category ids are class ids.
            have_source: Whether the names are image ids of records, SOURCE/NAME. The file name is then NAME with the
                ending of the image, unless two sources have the same NAME.
        """
        found = [re.fullmatch(r"(?:COCO_\w+_)?(\d{12})", posixpath.basename(name)) for name in names]
        numbers = [int(match[1]) for match in found if match]
        if len(set(numbers)) != len(names):
            numbers = list(range(1, len(names) + 1))
        files = [name.partition("/")[2] or name for name in names] if have_source else list(names)
        if len(set(files)) != len(files):
            files = list(names)
        places = {name: ImagePlace(i, file, False) for name, i, file in zip(names, numbers, files, strict=True)}
        return cls(places, {i: Category(i, name) for i, name in enumerate(class_names) if i != BACKGROUND})


def region(mask: NDArray[np.bool_], category_id: int, *, crowd: bool = False) -> Annotation:
    """Annotation of a mask (H, W): category_id, segmentation (size and counts), area in pixels, iscrowd."""
    counts = rle.encode(mask)
    return {
        "category_id": category_id,
        "segmentation": {"size": list(mask.shape), "counts": counts.decode()},
        "area": int(np.count_nonzero(mask)),
        "iscrowd": int(crowd),
    }


def connected_regions(label_map: NDArray[np.uint8]) -> list[Annotation]:
    """Annotations of a predicted label map (H, W): one per connected region of a class, with its tight bbox.

    A label map has no objects: two that touch are one region. Pixels that share a corner only are connected.
    """
    regions = []
    for class_id in np.unique(label_map).tolist():
        if class_id in (BACKGROUND, IGNORE_INDEX):
            continue
        count, parts = cv2.connectedComponents((label_map == class_id).astype(np.uint8), connectivity=8)
        for part in range(1, count):
            annotation = region(parts == part, class_id)
            bbox = coco_mask.toBbox(annotation["segmentation"]).tolist()
            regions.append({**annotation, "bbox": bbox, "score": 1.0})
    return regions


def class_regions(label_map: NDArray[np.uint8]) -> list[Annotation]:
    """Annotations of a predicted label map (H, W): one per class that occurs, with its tight bbox."""
    regions = []
    for class_id in np.unique(label_map).tolist():
        if class_id not in (BACKGROUND, IGNORE_INDEX):
            annotation = region(label_map == class_id, class_id)
            bbox = coco_mask.toBbox(annotation["segmentation"]).tolist()
            regions.append({**annotation, "bbox": bbox, "score": 1.0})
    return regions


def outlines(annotation: Annotation) -> list[Ring]:
    """The polygons of an annotation of `region`; [] if it has no pixel."""
    height, width = annotation["segmentation"]["size"]
    return polygons(rle.decode(annotation["segmentation"]["counts"], height, width))


class ObjectOutlines(NamedTuple):
    """An object as polygons."""

    class_id: int
    rings: list[Ring]  # one per connected part


def objects(image: CocoImage) -> list[ObjectOutlines]:
    """The objects of an image that have a pixel, those of large boxes first: the later ones lie in front."""
    ordered = sorted(image.annotations, key=lambda annotation: -annotation["bbox"][2] * annotation["bbox"][3])
    return [ObjectOutlines(each["category_id"], rings) for each in ordered if (rings := outlines(each))]


def write_coco(uri: str, images: Iterable[CocoImage], names: CocoNames) -> int:
    """Write an annotation file, with one image at a time in memory.

    Args:
        uri: The file to write.
        images: The images, in the order of the file; the category_id of an annotation is a class id.
        names: What images and classes are called in the file.

    Returns:
        Number of annotations.
    """
    return sum(len(image.annotations) for image in pass_coco(uri, images, names))


def pass_coco(
    uri: str, images: Iterable[CocoImage], names: CocoNames, *, as_polygons: bool = False
) -> Iterator[CocoImage]:
    """Write as `write_coco`, and yield each image when it is written; the file is there when all are.

    Args:
        uri: As `write_coco`.
        images: As `write_coco`.
        names: As `write_coco`.
        as_polygons: Write polygons in place of run lengths; objects without a pixel are left out.
    """
    categories = [category._asdict() for category in names.categories.values()]
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coco.json"
        with path.open("w") as file, (Path(folder) / "images.json").open("w+") as listed:
            file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
            for number, image in enumerate(images):
                image_id, file_name = names.images[image.name].id, names.file_name(image)
                entry = {"id": image_id, "file_name": file_name, "height": image.height, "width": image.width}
                listed.write((",\n" if number else "\n") + json.dumps(entry))
                for annotation in map(_with_polygons, image.annotations) if as_polygons else image.annotations:
                    if not annotation["segmentation"]:
                        continue
                    count += 1
                    category_id = names.categories[annotation["category_id"]].id
                    whole = {"id": count, "image_id": image_id, **annotation, "category_id": category_id}
                    line = json.dumps(whole, allow_nan=False)
                    file.write((",\n" if count > 1 else "\n") + line)
                yield image
            file.write('\n],\n"images": [')
            listed.seek(0)
            shutil.copyfileobj(listed, file)
            file.write("\n]}\n")
        storage.write_file(uri, path)


def _with_polygons(annotation: Annotation) -> Annotation:
    rings = [ring.round(2).ravel().tolist() for ring in outlines(annotation)]
    return {**annotation, "segmentation": rings, "iscrowd": 0}
