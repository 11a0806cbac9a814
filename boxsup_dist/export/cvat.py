"""CVAT's "for images 1.1": OUT/cvat.xml, one file with all images.

A shape is one polygon; the parts of an object share a group_id. https://docs.cvat.ai, "CVAT for image", has the format.
"""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path

from boxsup_dist.export.coco import CocoImage, CocoNames, objects
from boxsup_dist.io import storage


def pass_cvat(out: str, images: Iterable[CocoImage], names: CocoNames) -> Iterator[CocoImage]:
    """Write OUT/cvat.xml, and yield each image when it is written; the file is there when all are."""
    labels = ET.Element("labels")
    for category in names.categories.values():
        ET.SubElement(ET.SubElement(labels, "label"), "name").text = category.name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cvat.xml"
        with path.open("w", encoding="utf-8") as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
            file.write(f"<meta><task>{ET.tostring(labels, encoding='unicode')}</task></meta>\n")
            for image in images:
                file.write(ET.tostring(_element(image, names), encoding="unicode") + "\n")
                yield image
            file.write("</annotations>\n")
        storage.write_file(storage.join(out, "cvat.xml"), path)


def _element(image: CocoImage, names: CocoNames) -> ET.Element:
    facts = {"id": names.images[image.name].id, "name": names.file_name(image)}
    facts |= {"width": image.width, "height": image.height}
    element = ET.Element("image", {key: str(value) for key, value in facts.items()})
    for number, (class_id, rings) in enumerate(objects(image), start=1):
        for ring in rings:
            shape = {
                "label": names.categories[class_id].name,
                "source": "auto",
                "occluded": "0",
                "points": ";".join(f"{x:.2f},{y:.2f}" for x, y in ring),
                "z_order": str(number),
            }
            ET.SubElement(element, "polygon", shape | ({"group_id": str(number)} if len(rings) > 1 else {}))
    return element
