"""LabelMe's JSON: one file per image with shapes. Rectangles, polygons, circles and masks' boxes are read."""

from __future__ import annotations

import math
from typing import Any

from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.records.own.annotations import (
    AnnotatedImage,
    Annotations,
    Box,
    corners_around,
    files_of,
    number,
    read_each,
)

_SHAPES = ("rectangle", "oriented_rectangle", "polygon", "circle", "mask")
_IN_WORDS = "rectangles, polygons, circles and masks"


def read(uri: str) -> Annotations:
    """Read all JSON files below a folder, or one file."""
    return Annotations("labelme", read_each(*files_of(uri, ".json"), read_image))


def read_image(data: bytes, file: str, name: str) -> AnnotatedImage:
    """Read one file."""
    try:
        content = storage.parse_json(data, file=file)
    except InputError as error:
        raise error.at(kind=RecordError) from None
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise RecordError("not a file of LabelMe", field="shapes", expected="a list")
    kinds = [shape.get("shape_type") or "polygon" if isinstance(shape, dict) else None for shape in shapes]
    boxes = [_box(s, k, f"shape {n}") for n, (s, k) in enumerate(zip(shapes, kinds, strict=True), 1) if k in _SHAPES]
    left_out = [f"a {kind} is left out: only {_IN_WORDS} are read" for kind in kinds if kind not in _SHAPES]
    width, height = content.get("imageWidth"), content.get("imageHeight")
    size = None if not width or not height else (int(number(width, "imageWidth")), int(number(height, "imageHeight")))
    return AnnotatedImage(name, file, boxes, size, left_out=left_out, other_name=str(content.get("imagePath") or ""))


def _box(shape: dict[str, Any], kind: str, where: str) -> Box:
    points = points_of(shape.get("points"), where)
    label = str(shape.get("label") or "").strip()
    if kind == "circle":  # its centre and a point on its edge
        if len(points) != 2:
            raise RecordError("the circle has not two points", field=where, value=len(points), expected="2")
        (x, y), radius = points[0], math.dist(*points)
        return Box(label, (x - radius, y - radius, x + radius, y + radius), where)
    if kind == "polygon" and len(points) > 2:
        return Box(label, corners_around(points), where, mask=[[value for point in points for value in point]])
    return Box(label, corners_around(points), where)


def points_of(value: object, where: str) -> list[tuple[float, float]]:
    """Points (x, y) of a JSON list of at least two pairs; RecordError if it is none."""
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(p, list) and len(p) == 2 for p in value):
        expected = "[[x, y], [x, y], ...]"
        raise RecordError("not a list of points", field=f"{where}, points", value=value, expected=expected)
    return [(number(x, f"{where}, points"), number(y, f"{where}, points")) for x, y in value]
