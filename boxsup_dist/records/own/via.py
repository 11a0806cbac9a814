"""VGG Image Annotator's JSON: a project, or its exported annotations. Rectangles, polygons, circles, ellipses."""

from __future__ import annotations

from typing import Any

from boxsup_dist.errors import RecordError
from boxsup_dist.io import storage
from boxsup_dist.records.own.annotations import AnnotatedImage, Annotations, Box, corners_around, number

_SHAPES = ("rect", "polygon", "circle", "ellipse")
_CLASS_KEYS = ("class", "label", "name", "type", "category", "object")


def read(uri: str) -> Annotations:
    """Read one file.

    Raises:
        RecordError: It is not such a file, or a value in it is missing or no number.
    """
    content = storage.parse_json(storage.read_bytes(uri), file=uri)
    items = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    try:
        if not isinstance(items, dict) or not all(isinstance(v, dict) and "filename" in v for v in items.values()):
            raise RecordError("not a file of VGG Image Annotator", expected="images with filename and regions")
        images = [_image(item, uri) for item in items.values()]
    except RecordError as error:
        raise error.at(file=uri) from None
    return Annotations("via", images)


def _image(item: dict[str, Any], file: str) -> AnnotatedImage:
    regions = item.get("regions") or []
    regions = list(regions.values()) if isinstance(regions, dict) else regions
    boxes, left_out = [], []
    for place, region in enumerate(regions, start=1):
        where = f"{item['filename']}, region {place}"
        shape = region.get("shape_attributes") if isinstance(region, dict) else None
        if not isinstance(shape, dict):
            raise RecordError("the region has no shape", field=where, value=region, expected="shape_attributes")
        kind = shape.get("name")
        if kind in _SHAPES:
            boxes.append(_box(shape, str(kind), _class_name(region, where), where))
        else:
            left_out.append(f"region {place} is left out: a {kind} is no box")
    return AnnotatedImage(str(item["filename"]), file, boxes, left_out=left_out)


def _class_name(region: dict[str, Any], where: str) -> str:
    """The value of the attribute that names the class: the only one, or one of _CLASS_KEYS."""
    attributes = region.get("region_attributes")
    found = {key.lower(): value for key, value in attributes.items()} if isinstance(attributes, dict) else {}
    value = next(iter(found.values())) if len(found) == 1 else next((found[k] for k in _CLASS_KEYS if k in found), None)
    if isinstance(value, dict) and len(value) == 1:  # of a checkbox: {"cat": true}
        value = next(iter(value))
    if not isinstance(value, str) or not value.strip():
        expected = f"one attribute, or one of {', '.join(_CLASS_KEYS)}"
        raise RecordError(
            "the region names no class", field=f"{where}, region_attributes", value=attributes, expected=expected
        )
    return value.strip()


def _box(shape: dict[str, Any], kind: str, label: str, where: str) -> Box:
    def values(*keys: str) -> list[float]:
        return [number(shape.get(key), f"{where}, {key}") for key in keys]

    if kind == "rect":
        x, y, width, height = values("x", "y", "width", "height")
        return Box(label, (x, y, x + width, y + height), where)
    if kind in ("circle", "ellipse"):
        x, y = values("cx", "cy")
        rx, ry = values("rx", "ry") if kind == "ellipse" else values("r") * 2
        return Box(label, (x - rx, y - ry, x + rx, y + ry), where)
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys) or len(xs) < 3:
        raise RecordError("not a polygon", field=where, value=shape, expected="all_points_x and all_points_y")
    points = [(number(x, where), number(y, where)) for x, y in zip(xs, ys, strict=True)]
    return Box(label, corners_around(points), where, mask=[[value for point in points for value in point]])
