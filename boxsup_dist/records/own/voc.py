"""Pascal VOC's XML with any class names: one file per image, as LabelImg, CVAT and Roboflow write it.

The devkit counts from 1 with both ends inside; some tools count from 0. A data set with a coordinate below 1 counts
from 0, any other from 1.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

from boxsup_dist.errors import RecordError
from boxsup_dist.records.files import parse_xml
from boxsup_dist.records.own.annotations import AnnotatedImage, Annotations, Box, files_of, number, read_each

_KEYS = ("xmin", "ymin", "xmax", "ymax")


def read(uri: str) -> Annotations:
    """Read all XML files below a folder, or one file."""
    images = read_each(*files_of(uri, ".xml"), read_image)
    counts_from_0 = any(min(box.corners[:2]) < 1 for image in images for box in image.boxes)
    return Annotations("voc", images if counts_from_0 else [_from_1(image) for image in images])


def _from_1(image: AnnotatedImage) -> AnnotatedImage:
    def shifted(box: Box) -> Box:
        x0, y0, x1, y1 = box.corners
        return replace(box, corners=(x0 - 1, y0 - 1, x1, y1))

    return replace(image, boxes=[shifted(box) for box in image.boxes])


def parse_root(data: bytes, tag: str) -> ET.Element:
    """The root of an XML file; RecordError if it is none, or has another tag."""
    root = parse_xml(data)
    if root.tag != tag:
        raise RecordError("another kind of XML", field="root", value=root.tag, expected=f"<{tag}>")
    return root


def read_image(data: bytes, file: str, name: str) -> AnnotatedImage:
    """Read one file, with the numbers as they stand."""
    root = parse_root(data, "annotation")
    boxes = [_box(item, place) for place, item in enumerate(root.findall("object"), start=1)]
    width, height = (root.findtext(f"size/{key}") for key in ("width", "height"))
    size = None
    if width and height and (found := (int(number(width, "size/width")), int(number(height, "size/height")))) != (0, 0):
        size = found  # some tools write 0 for a size that they do not know
    return AnnotatedImage(name, file, boxes, size, other_name=(root.findtext("filename") or "").strip())


def _box(item: ET.Element, place: int) -> Box:
    where = f"object {place}"
    texts = [item.findtext(f"bndbox/{key}") for key in _KEYS]
    if None in texts:
        expected = f"a bndbox with {', '.join(_KEYS)}"
        raise RecordError("the object has no box", field=where, value=texts, expected=expected)
    x0, y0, x1, y1 = (number(text, f"{where}, {key}") for key, text in zip(_KEYS, texts, strict=True))
    difficult = (item.findtext("difficult") or "0").strip() == "1"
    return Box((item.findtext("name") or "").strip(), (x0, y0, x1, y1), where, difficult)
