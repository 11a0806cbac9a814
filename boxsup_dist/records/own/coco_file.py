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
    images = [_image(image, index, uri) for image in index.images]
    return Annotations("coco", images, index.classes[1:], category_ids=coco.category_ids(index))


def _image(image: coco.CocoImage, index: coco.CocoIndex, file: str) -> AnnotatedImage:
    size = (image.width, image.height)
    try:
        boxes = [_box(annotation, index) for annotation in image.annotations]
    except RecordError as error:
        problem = error.at(file=file)
        assert isinstance(problem, RecordError)
        return AnnotatedImage(image.file_name, file, size=size, problem=problem, id=image.id)
    return AnnotatedImage(image.file_name, file, boxes, size, left_out=image.left_out, id=image.id)


def _box(annotation: dict[str, Any], index: coco.CocoIndex) -> Box:
    where, bbox = f"annotation {annotation.get('id', '(without id)')}", annotation.get("bbox")
    try:
        class_name, crowd = index.classes[coco.class_id_of(annotation, index.class_of)], coco.is_crowd(annotation)
        if bbox is None or not is_numbers(bbox, 4):
            expected = "[x, y, width, height]"
            raise RecordError("the box is not four numbers", field="bbox", value=bbox, expected=expected)
    except RecordError as error:
        raise error.at(field=f"{where}, {error.field}") from None
    x, y, width, height = (float(value) for value in bbox)
    corners = (x, y, x + width, y + height)
    return Box(class_name, corners, where, crowd=crowd, mask=annotation.get("segmentation") or None)
