"""A small COCO data set made by the tests: an annotation file and its images, good or broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxsup_dist.data.schema import VOC_CLASSES
from tests.devkit import HEIGHT, WIDTH, jpeg

CATEGORIES = {"person": 1, "airplane": 5, "zebra": 24, "couch": 63}
_COCO_NAMES = {
    "aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "pottedplant": "potted plant",
    "diningtable": "dining table", "tvmonitor": "tv",
}  # fmt: skip
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]  # pixels 5..14 in both directions


def annotation(image_id: int = 1, category: str = "person", **changes: Any) -> dict[str, Any]:
    """A square of 10 pixels."""
    item = {
        "id": 7,
        "image_id": image_id,
        "category_id": CATEGORIES[category],
        "bbox": [5, 5, 10, 10],
        "iscrowd": 0,
        "segmentation": SQUARE,
    }
    return item | changes


def content(annotations: Sequence[dict[str, Any]], num_images: int = 1) -> dict[str, Any]:
    """The annotation file's content, with all classes of VOC and a zebra."""
    known = {_COCO_NAMES.get(name, name): 100 + i for i, name in enumerate(VOC_CLASSES[1:])} | CATEGORIES
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(1, num_images + 1)
    ]
    categories = [{"id": i, "name": name} for name, i in known.items()]
    return {"images": images, "annotations": list(annotations), "categories": categories}


def write(root: Path, annotations: Sequence[dict[str, Any]] | dict[str, Any], num_images: int = 1) -> str:
    """Write the images and `instances.json` (from annotations, or a whole content); returns that file's path."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(1, num_images + 1):
        (root / f"{i:012d}.jpg").write_bytes(jpeg())
    whole = annotations if isinstance(annotations, dict) else content(annotations, num_images)
    (root / "instances.json").write_text(json.dumps(whole))
    return str(root / "instances.json")
