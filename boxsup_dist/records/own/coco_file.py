"""A COCO file with any categories, in the order of their ids; `records/coco.py` reads and checks it."""

from __future__ import annotations

from typing import Any

import numpy as np

from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.records import coco
from boxsup_dist.records.boxes import is_numbers
from boxsup_dist.records.own.annotations import AnnotatedImage, Annotations, Box

_FEW_BOXES, _MANY_SHARE = 5, 0.2  # so many boxes that stick out are no slips of a hand


def read(uri: str) -> Annotations:
    """Read one file.

    Raises:
        InputError: It is not such a file, or its boxes are corners.
    """
    index = coco.read_index(uri, "all")
    _refuse_corners(index, uri)
    images = [_image(image, index, uri) for image in index.images]
    return Annotations("coco", images, index.classes[1:], category_ids=coco.category_ids(index))


def _refuse_corners(index: coco.CocoIndex, file: str) -> None:
    """InputError if many boxes stick out as [x, y, width, height], and all fit their images as [x0, y0, x1, y1]."""
    boxes = [
        (*annotation["bbox"], image.width, image.height)
        for image in index.images
        for annotation in image.annotations
        if is_numbers(annotation.get("bbox"), 4)
    ]
    if len(boxes) < _FEW_BOXES:
        return
    x, y, third, fourth, width, height = np.array(boxes, np.float64).T
    stick_out = (x + third > width + 1) | (y + fourth > height + 1)
    are_corners = (x < third) & (y < fourth) & (third <= width + 1) & (fourth <= height + 1)
    if stick_out.mean() > _MANY_SHARE and are_corners.all():
        found, expected = list(boxes[int(stick_out.argmax())][:4]), "[x, y, width, height]"
        raise InputError(
            "the boxes are corners, x0, y0, x1, y1", file=file, field="annotations.bbox", value=found, expected=expected
        )


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
