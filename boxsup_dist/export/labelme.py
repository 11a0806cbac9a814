"""LabelMe's JSON: OUT/labelme/FILE_NAME.json per image. Copy the files beside their images to open them.

A shape is one polygon; the parts of an object share a group_id. https://github.com/wkentaro/labelme has the format.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

from boxsup_dist.export.coco import CocoImage, CocoNames, objects
from boxsup_dist.io import storage


def pass_labelme(out: str, images: Iterable[CocoImage], names: CocoNames) -> Iterator[CocoImage]:
    """Write the files below OUT/labelme, and yield each image when it is written."""
    for image in images:
        file_name = names.file_name(image)
        shapes = [
            {
                "label": names.categories[class_id].name,
                "points": ring.round(2).tolist(),
                "group_id": number if len(rings) > 1 else None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
            }
            for number, (class_id, rings) in enumerate(objects(image), start=1)
            for ring in rings
        ]
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": posixpath.basename(file_name),
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        uri = storage.join(out, "labelme", posixpath.splitext(file_name)[0] + ".json")
        storage.write_bytes(uri, json.dumps(content, ensure_ascii=False, indent=1).encode())
        yield image
