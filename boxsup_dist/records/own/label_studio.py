"""Label Studio's JSON export, and its JSON-MIN: tasks with regions in percent of the image.

Rectangles, ellipses and polygons are read, a turned rectangle as its tight box. Of several annotations of a task the
last one that was not cancelled counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from boxsup_dist.errors import RecordError
from boxsup_dist.io import storage
from boxsup_dist.records.own.annotations import AnnotatedImage, Annotations, Box, corners_around, number
from boxsup_dist.records.own.labelme import points_of

_KINDS = ("rectanglelabels", "polygonlabels", "ellipselabels")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts it before the name of an uploaded file


def read(uri: str) -> Annotations:
    """Read one export.

    Raises:
        RecordError: It is not such a file, or a value in it is missing or no number.
    """
    tasks = storage.parse_json(storage.read_bytes(uri), file=uri)
    try:
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise RecordError("not an export of Label Studio", expected="a list of tasks")
        images = [_image(task, f"task {task.get('id', place)}", uri) for place, task in enumerate(tasks, start=1)]
    except RecordError as error:
        raise error.at(file=uri) from None
    return Annotations("label_studio", images)


def _image(task: dict[str, Any], where: str, file: str) -> AnnotatedImage:
    name = _image_name(task, where)
    regions = list(_regions(task))
    boxes = [
        _box(kind, value, size, f"{where}, region {n}")
        for n, (kind, value, size) in enumerate(regions, start=1)
        if kind in _KINDS
    ]
    others = [kind for kind, _, _ in regions if kind not in _KINDS]
    left_out = [f"a region of {kind} is left out: only boxes, polygons and ellipses are read" for kind in others]
    sizes = {size for _, _, size in regions if size is not None}
    if len(sizes) > 1:
        raise RecordError("the regions of one image state different sizes", field=where, value=sorted(sizes))
    size = sizes.pop() if sizes else None
    other_name = _UPLOAD.sub("", name.rsplit("/", 1)[-1])
    return AnnotatedImage(name, file, boxes, size, is_relative=True, left_out=left_out, other_name=other_name)


def _image_name(task: dict[str, Any], where: str) -> str:
    data = task.get("data", task)
    texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
    name = texts.get("image") or next((v for v in texts.values() if re.search(r"\.\w{3,5}(\?|$)", v)), None)
    if name is None:
        raise RecordError("the task names no image", field=f"{where}, data", value=data, expected="an image")
    # "/data/local-files/?d=folder/1.jpg" names a file of the server's disk
    return re.sub(r"^.*[?&]d=", "", name).partition("?")[0]


def _regions(task: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], tuple[int, int] | None]]:
    """Kind, values and stated size of the regions of a task."""
    if "annotations" in task or "completions" in task:
        made = [each for each in task.get("annotations", task.get("completions")) or [] if isinstance(each, dict)]
        kept = [each for each in made if not each.get("was_cancelled")][-1:]
        found = [region for each in kept for region in each.get("result") or []]
        for region in found:
            if (
                isinstance(region, dict)
                and isinstance(region.get("value"), dict)
                and "labels" in str(region.get("type"))
            ):
                yield region["type"], region["value"], _size(region)
        return
    for value in task.values():  # JSON-MIN: the control's own name, with the values themselves
        for region in value if isinstance(value, list) else []:
            kinds = [key for key in region if key.endswith("labels")] if isinstance(region, dict) else []
            for kind in kinds:
                yield kind, region, _size(region)


def _size(region: dict[str, Any]) -> tuple[int, int] | None:
    width, height = region.get("original_width"), region.get("original_height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def _box(kind: str, value: dict[str, Any], size: tuple[int, int] | None, where: str) -> Box:
    labels = value.get(kind)
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
        raise RecordError("the region has not one label", field=f"{where}, {kind}", value=labels, expected="one name")
    label = labels[0].strip()
    if kind == "polygonlabels":
        points = [(x / 100, y / 100) for x, y in points_of(value.get("points"), where)]
        mask = [[each for point in points for each in point]] if len(points) > 2 else None
        return Box(label, corners_around(points), where, mask=mask)
    if kind == "ellipselabels":
        x, y, rx, ry = (number(value.get(k), f"{where}, {k}") / 100 for k in ("x", "y", "radiusX", "radiusY"))
        return Box(label, (x - rx, y - ry, x + rx, y + ry), where)
    x, y, width, height = (number(value.get(k), f"{where}, {k}") / 100 for k in ("x", "y", "width", "height"))
    degrees = number(value.get("rotation") or 0, f"{where}, rotation")
    return Box(label, _around_turned((x, y), (width, height), degrees, size, where), where)


def _around_turned(
    corner: tuple[float, float], sides: tuple[float, float], degrees: float, size: tuple[int, int] | None, where: str
) -> tuple[float, float, float, float]:
    """The tight box of a box turned around its upper left corner, in shares of the image."""
    (x, y), (width, height) = corner, sides
    if degrees % 360 == 0:
        return x, y, x + width, y + height
    if size is None:
        expected = "original_width and original_height"
        raise RecordError("a turned box needs the size of its image", field=where, value=degrees, expected=expected)
    ratio = size[0] / size[1]  # the angle is that of pixels
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    right, down = (width * cos, width * sin * ratio), (-height * sin / ratio, height * cos)
    return corners_around(
        (x + i * right[0] + j * down[0], y + i * right[1] + j * down[1]) for i in (0, 1) for j in (0, 1)
    )
