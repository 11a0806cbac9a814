"""Masks that somebody drew for some of the own images: label maps as PNG files, or a COCO file with segmentations.

A folder has one PNG per image, named as the image. Its pixels are class ids in the order of the run's classes, or
VOC's colours, or the colours that a `labelmap.txt` in the folder names (`cat:128,0,0::` per line, as CVAT writes it).
Of CVAT's export, which has masks of classes and of objects, only the folder SegmentationClass is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.images import check_size, encode_png, image_errors, open_file
from boxsup_dist.data.schema import BACKGROUND
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.records import files
from boxsup_dist.records.coco_masks import paint_masks, read_mask
from boxsup_dist.records.own import coco_file
from boxsup_dist.records.own.annotations import AnnotatedImage, decode_text
from boxsup_dist.records.own.matching import ImageFiles

_LABELMAP, _OF_CLASSES = "labelmap.txt", "SegmentationClass"
_EXPECTED = "a folder of PNG label maps, or a COCO file with segmentations"
Colours = dict[tuple[int, int, int], str]


@dataclass(frozen=True)
class DrawnMask:
    """The mask of one image, not read yet: a PNG file, or annotations of a COCO file."""

    file: str  # URI of the PNG or COCO file
    annotation: AnnotatedImage | None = None
    colours: Colours | None = None  # class name of each colour of the PNG; None: class ids or VOC's colours

    @property
    def identity(self) -> list[object]:
        """JSON values that distinguish the mask from others: the name of a PNG, or the content of annotations."""
        boxes = [] if self.annotation is None else self.annotation.boxes
        colours = sorted((self.colours or {}).items())
        return [self.file, colours, [[box.class_name, box.crowd, box.mask] for box in boxes]]

    def read(self, height: int, width: int, class_of: Mapping[str, int]) -> bytes:
        """The label map as a PNG of class ids (height, width).

        Raises:
            RecordError: It is unreadable, has another size than the image, or a class that the boxes lack.
        """
        if self.annotation is not None:
            return encode_png(_paint(self.annotation, height, width, class_of))
        data = files.read_file(self.file)
        if self.colours is None:
            return files.read_mask(data, height, width, len(class_of), file=self.file)
        label_map = _ids_of_colours(data, self.colours, class_of, self.file)
        return files.read_mask(encode_png(label_map), height, width, len(class_of), file=self.file)


def find_masks(uri: str, images: ImageFiles) -> dict[str, DrawnMask]:
    """The mask of each image that has one, by the image's path below its folder.

    Args:
        uri: A folder of PNG files, or a COCO file.
        images: The images. Masks of other images are not read.

    Raises:
        InputError: There is no mask of these images, one may mean several images, or an image has two.
    """
    uri = storage.absolute(uri)
    if storage.is_folder(uri):
        found = _of_folder(uri)
    elif storage.exists(uri):
        annotated = [image for image in coco_file.read(uri).images if image.boxes or image.problem]
        found = [(image.name, DrawnMask(uri, image)) for image in annotated]
    else:
        raise InputError("no such file or folder", file=uri, field="masks", expected=_EXPECTED)
    masks: dict[str, DrawnMask] = {}
    for name, mask in found:
        matches = images.find(name)
        if len(matches) > 1:
            expected = f"a path that only one image has; these match: {', '.join(matches[:4])}"
            raise InputError("the mask may mean several images", file=uri, field="masks", value=name, expected=expected)
        for match in matches:
            if match in masks:
                raise InputError("two masks of one image", file=uri, field="masks", value=[match, name], expected="one")
            masks[match] = mask
    if not masks:
        value, expected = [name for name, _ in found[:3]], f"names as of the images: {', '.join(images.names[:3])}"
        raise InputError("no mask of these images", file=uri, field="masks", value=value, expected=expected)
    return masks


def _of_folder(uri: str) -> list[tuple[str, DrawnMask]]:
    names = storage.find_files(uri)
    labelmap = next((name for name in names if name.rpartition("/")[2] == _LABELMAP), None)
    colours = None if labelmap is None else _read_labelmap(storage.join(uri, labelmap))
    pngs = [name for name in names if name.lower().endswith(".png")]
    of_classes = [name for name in pngs if _OF_CLASSES in name.split("/")[:-1]]
    if not pngs:
        raise InputError("no PNG file below this folder", file=uri, field="masks", value=names[:3], expected=_EXPECTED)
    return [
        (name.rpartition(f"{_OF_CLASSES}/")[2], DrawnMask(storage.join(uri, name), colours=colours))
        for name in of_classes or pngs
    ]


def _read_labelmap(file: str) -> Colours:
    colours: Colours = {}
    for number, line in enumerate(decode_text(storage.read_bytes(file), file).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        parts = rest.partition(":")[0].split(",")
        if len(parts) != 3 or not all(part.strip().isdigit() and int(part) < 256 for part in parts):
            raise InputError(
                "not a colour of a class", file=file, field=f"line {number}", value=line, expected="name:r,g,b"
            )
        red, green, blue = map(int, parts)
        if (red, green, blue) in colours:
            raise InputError("two classes of one colour", file=file, field=f"line {number}", value=line)
        colours[red, green, blue] = name.strip()
    return colours


def _ids_of_colours(data: bytes, colours: Colours, class_of: Mapping[str, int], file: str) -> NDArray[np.uint8]:
    try:
        with image_errors(), open_file(data) as image:
            check_size(image)
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise RecordError("the mask does not decode", file=file, value=str(error)) from None
    found, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    ids = np.zeros(len(found), np.uint8)
    for index, colour in enumerate(found.tolist()):
        name = colours.get(tuple(colour))
        if name is None:
            raise RecordError("a colour of the mask is not in labelmap.txt", file=file, value=colour)
        ids[index] = _class_id(name, class_of, file)
    return ids[places].reshape(pixels.shape[:2])


def _class_id(name: str, class_of: Mapping[str, int], file: str) -> int:
    if name.lower() == "background":
        return BACKGROUND
    if name not in class_of:
        expected = f"one of {', '.join(class_of)}"
        raise RecordError(
            "the mask has a class that the boxes lack", file=file, field="class", value=name, expected=expected
        )
    return class_of[name]


def _paint(annotation: AnnotatedImage, height: int, width: int, class_of: Mapping[str, int]) -> NDArray[np.uint8]:
    if annotation.problem is not None:
        raise annotation.problem
    masks = []
    for box in annotation.boxes:
        try:
            mask, _ = read_mask(box.mask, height, width, "clip")
            if mask is None:
                raise RecordError("the object has no mask", field="segmentation", expected="one for each object")
        except RecordError as error:
            raise error.at(file=annotation.file, field=f"{annotation.name}, {box.where}, {error.field}") from None
        masks.append(mask)
    class_ids = [_class_id(box.class_name, class_of, annotation.file) for box in annotation.boxes]
    return paint_masks((height, width), masks, class_ids, [box.crowd for box in annotation.boxes])
