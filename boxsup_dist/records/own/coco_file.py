"""A COCO file with any categories, in the order of their ids; `records/coco.py` reads and checks it."""

from __future__ import annotations

from typing import Any

from boxsup_dist.errors import RecordError
from boxsup_dist.records import coco
from boxsup_dist.records.boxes import is_numbers
from boxsup_dist.records.own.annotations import AnnotatedImage, Annotations, Box


def read(uri: str) -> Annotations:
    """Read one file.

    Raises:
        InputError: It is not such a file.
    """
    index = coco.read_index(uri, "all")
    names = {category: index.classes[class_id] for category, class_id in index.class_of.items()}
    return Annotations("coco", [_image(image, names, uri) for image in index.images], index.classes[1:])


def _image(image: coco.CocoImage, names: dict[int, str], file: str) -> AnnotatedImage:
    size = (image.width, image.height)
    try:
        boxes = [_box(annotation, names) for annotation in image.annotations]
    except RecordError as error:
        problem = error.at(file=file)
        assert isinstance(problem, RecordError)
        return AnnotatedImage(image.file_name, file, size=size, problem=problem)
    return AnnotatedImage(image.file_name, file, boxes, size, left_out=image.left_out)


def _box(annotation: dict[str, Any], names: dict[int, str]) -> Box:
    where = f"annotation {annotation.get('id', '(without id)')}"
    bbox, category, crowd = annotation.get("bbox"), annotation["category_id"], annotation.get("iscrowd", 0)
    if bbox is None or not is_numbers(bbox, 4):
        expected = "[x, y, width, height]"
        raise RecordError("the box is not four numbers", field=f"{where}, bbox", value=bbox, expected=expected)
    if category not in names:
        expected = "an id of categories"
        raise RecordError("unknown category", field=f"{where}, category_id", value=category, expected=expected)
    if crowd not in (0, 1):
        raise RecordError("neither an object nor a crowd", field=f"{where}, iscrowd", value=crowd, expected="0 or 1")
    x, y, width, height = (float(value) for value in bbox)
    corners = (x, y, x + width, y + height)
    return Box(names[category], corners, where, crowd=bool(crowd), mask=annotation.get("segmentation") or None)
