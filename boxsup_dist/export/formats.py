"""The annotation formats that masks are written in, by name; all of them in one pass over the images."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, get_args

from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.export.coco import CocoImage, CocoNames, pass_coco
from boxsup_dist.export.cvat import pass_cvat
from boxsup_dist.export.labelme import pass_labelme
from boxsup_dist.export.yolo import pass_yolo
from boxsup_dist.io import storage

Format = Literal["coco", "coco_polygons", "yolo", "labelme", "cvat"]
OUTPUT_OF: dict[Format, str] = {
    "coco": "coco.json",
    "coco_polygons": "coco_polygons.json",
    "yolo": "yolo",
    "labelme": "labelme",
    "cvat": "cvat.xml",
}
_FILE_PER_IMAGE = ("yolo", "labelme")


def _pass_run_lengths(out: str, images: Iterable[CocoImage], names: CocoNames) -> Iterator[CocoImage]:
    return pass_coco(storage.join(out, OUTPUT_OF["coco"]), images, names)


def _pass_polygons(out: str, images: Iterable[CocoImage], names: CocoNames) -> Iterator[CocoImage]:
    return pass_coco(storage.join(out, OUTPUT_OF["coco_polygons"]), images, names, as_polygons=True)


Writer = Callable[[str, Iterable[CocoImage], CocoNames], Iterator[CocoImage]]
WRITERS: dict[Format, Writer] = {
    "coco": _pass_run_lengths,
    "coco_polygons": _pass_polygons,
    "yolo": pass_yolo,
    "labelme": pass_labelme,
    "cvat": pass_cvat,
}


def check_formats(formats: Sequence[str]) -> None:
    """Raise SettingError on an unknown format, or one that is named twice."""
    known = get_args(Format)
    wrong = [name for name in formats if name not in known or formats.count(name) > 1]
    if wrong:
        raise SettingError("an unknown or repeated format", field="formats", value=wrong, expected=str(known))


def check_file_names(formats: Sequence[Format], names: CocoNames) -> None:
    """Raise InputError if a file per image cannot be named as the input names the image, or two would have one name."""
    if not set(formats) & set(_FILE_PER_IMAGE):
        return
    first: dict[str, str] = {}
    for place in names.images.values():
        storage.safe_name(place.file_name, field="images.file_name")
        stem = posixpath.splitext(place.file_name)[0] if place.has_ending else place.file_name
        other = first.setdefault(stem, place.file_name)
        if other is not place.file_name:
            raise InputError(
                "two images differ in their ending only, which YOLO and LabelMe leave out",
                field="formats",
                value=[other, place.file_name],
                expected="coco, coco_polygons or cvat",
            )


def write_formats(out: str, formats: Sequence[Format], images: Iterable[CocoImage], names: CocoNames) -> int:
    """Write images with their masks in every format.

    Args:
        out: Folder or URI; `OUTPUT_OF` has the names in it.
        formats: The formats.
        images: The images; one at a time is in memory.
        names: What images and classes are called.

    Returns:
        Number of objects, with those that have no pixel.
    """
    for name in formats:
        images = WRITERS[name](out, images, names)
    return sum(len(image.annotations) for image in images)
