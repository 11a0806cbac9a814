"""CVAT's "for images 1.1": one XML file with all images.

Boxes, polygons and masks are read, a turned box as its tight box. The runs of a mask alternate between 0 and 1, begin
with 0, and cover its own rectangle row by row.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np

from boxsup_dist.data import rle
from boxsup_dist.data.images import MAX_PIXELS
from boxsup_dist.errors import RecordError
from boxsup_dist.io import storage
from boxsup_dist.records.own.annotations import AnnotatedImage, Annotations, Box, corners_around, number
from boxsup_dist.records.own.voc import parse_root

_SHAPES = ("box", "polygon", "mask")
_NO_SHAPES = ("tag",)  # of the whole image


def read(uri: str) -> Annotations:
    """Read one file.

    Raises:
        RecordError: It is not such a file, or a value in it is missing or no number.
    """
    try:
        root = parse_root(storage.read_bytes(uri), "annotations")
        images = [_image(item, uri) for item in root.findall("image")]
        if not images:
            problem = "the file has no image: export the task as CVAT for images 1.1"
            raise RecordError(problem, value=sorted({child.tag for child in root}), expected="<image>")
    except RecordError as error:
        raise error.at(file=uri) from None
    labels = [(label.findtext("name") or "").strip() for label in root.iter("label")]
    return Annotations("cvat", images, tuple(dict.fromkeys(name for name in labels if name)))


def _image(item: ET.Element, file: str) -> AnnotatedImage:
    name = item.get("name", "")
    place = f"image {item.get('id', '?')}, {name}"
    others = sorted({shape.tag for shape in item} - {*_SHAPES, *_NO_SHAPES})
    left_out = [f"a {tag} of the image is left out: only boxes, polygons and masks are read" for tag in others]
    width, height = (item.get(key) for key in ("width", "height"))
    size = None if width is None or height is None else (int(number(width, place)), int(number(height, place)))
    shapes = [(shape, f"{place}, {shape.tag} {n}") for n, shape in enumerate(item, start=1) if shape.tag in _SHAPES]
    boxes = [_mask(shape, size, w) if shape.tag == "mask" else _box(shape, w) for shape, w in shapes]
    number_of_image = item.get("id", "")
    image_id = int(number_of_image) if number_of_image.isdecimal() else None
    return AnnotatedImage(name, file, boxes, size, left_out=left_out, id=image_id)


def _box(shape: ET.Element, where: str) -> Box:
    label = shape.get("label", "").strip()
    if shape.tag == "polygon":
        points = [
            (number(x, f"{where}, points"), number(y, f"{where}, points"))
            for x, _, y in (pair.partition(",") for pair in shape.get("points", "").split(";"))
        ]
        mask = [[value for point in points for value in point]]
        return Box(label, corners_around(points), where, mask=mask if len(points) > 2 else None)
    x0, y0, x1, y1 = (number(shape.get(key), f"{where}, {key}") for key in ("xtl", "ytl", "xbr", "ybr"))
    turned = number(shape.get("rotation", "0"), f"{where}, rotation")
    return Box(label, turned_box((x0, y0, x1, y1), turned), where)


def _mask(shape: ET.Element, size: tuple[int, int] | None, where: str) -> Box:
    x, y, width, height = (int(number(shape.get(k), f"{where}, {k}")) for k in ("left", "top", "width", "height"))
    if size is None or min(x, y) < 0 or min(width, height) < 1 or x + width > size[0] or y + height > size[1]:
        found, expected = [x, y, width, height], f"left, top, width, height inside the image's {size}"
        raise RecordError("the mask lies outside the image", field=where, value=found, expected=expected)
    if math.prod(size) > MAX_PIXELS:
        raise RecordError("the image is too large", field=where, value=size, expected=f"<= {MAX_PIXELS} pixels")
    runs = [int(number(run, f"{where}, rle")) for run in shape.get("rle", "").split(",")]
    try:
        rows = rle.decode(runs, width, height).T  # COCO's runs go down the columns
    except RecordError as error:
        raise error.at(field=f"{where}, rle") from None
    mask = np.zeros(size[::-1], bool)
    mask[y : y + height, x : x + width] = rows
    counts = {"size": list(mask.shape), "counts": rle.encode(mask).decode()}
    return Box(shape.get("label", "").strip(), (x, y, x + width, y + height), where, mask=counts)


def turned_box(corners: tuple[float, float, float, float], degrees: float) -> tuple[float, float, float, float]:
    """The tight box of a box that is turned around its centre."""
    if degrees % 360 == 0:
        return corners
    x0, y0, x1, y1 = corners
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return corners_around(
        (centre_x + cos * (x - centre_x) - sin * (y - centre_y), centre_y + sin * (x - centre_x) + cos * (y - centre_y))
        for x in (x0, x1)
        for y in (y0, y1)
    )
