"""Makes records of images and boxes that people drew with any tool.

Class ids follow the format's own list of classes, or the alphabet where it has none. An image is turned by its EXIF
orientation, as tools show it, unless the annotation states the size of the image as it is stored. A turned image is
stored anew, without loss; the bytes of all others are unchanged. Polygons and run lengths become masks: an image whose
objects all have one gets a ground truth.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data import rle
from boxsup_dist.data.images import encode_png, exif_orientation, turned_by_exif
from boxsup_dist.data.input_names import InputImage, InputNames
from boxsup_dist.data.schema import IGNORE_INDEX, Record
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import fingerprint
from boxsup_dist.records.boxes import reaches_outside, refuse_relative
from boxsup_dist.records.coco_masks import paint_masks, read_mask
from boxsup_dist.records.files import read_image
from boxsup_dist.records.own.annotations import AnnotatedImage, Annotations, Box
from boxsup_dist.records.own.formats import read_annotations
from boxsup_dist.records.own.masks import DrawnMask, find_masks
from boxsup_dist.records.own.matching import ImageFiles, image_names
from boxsup_dist.records.reader import Reader
from boxsup_dist.records.settings import BoxFormat, Outside

BACKGROUND_NAME = "background"


@dataclass(frozen=True)
class OwnEntry:
    """An image file and its annotation: an `Entry` of the reader."""

    name: str
    file: str  # URI; "" if the image was not found
    annotation: AnnotatedImage
    split: str
    path: str = ""  # of the file below the folder of images
    mask: DrawnMask | None = None  # of the whole image, beside the boxes

    @property
    def left_out(self) -> Sequence[str]:
        """One sentence per annotation of the image that the record will not have."""
        flat = [box for box in self.annotation.boxes if _has_no_area(box)]
        return [*self.annotation.left_out, *(f"{box.where} is left out: its box has no area" for box in flat)]


def _has_no_area(box: Box) -> bool:
    x0, y0, x1, y1 = box.corners
    return (x1 == x0 and y1 >= y0) or (y1 == y0 and x1 >= x0)


def open_own(
    images: str,
    boxes: str,
    split: str,
    *,
    box_format: BoxFormat | None = None,
    source: str = "own",
    outside: Outside = "refuse",
    relative: bool = False,
    masks: str | None = None,
) -> Reader:
    """Return the reader of a folder of images and their annotations.

    Args:
        images: Path or URI of the folder; its sub-folders are read too.
        boxes: Annotation file, or folder of annotation files.
        split: Split name of the records.
        box_format: Format of the annotations; None finds it out.
        source: Name of the data set in the image ids, which are `source/PATH` without the file's ending.
        outside: What to do with a box or polygon that reaches more than 1 px beyond its image: "refuse" leaves the
            image out, "clip" cuts it off.
        relative: Read coordinates as shares of width and height (0 to 1) in a format that has pixels.
        masks: Path or URI of the masks of some images, see masks.py; they are the ground truth of these images.

    Raises:
        InputError: The annotations cannot be read, none of their images is in the folder, a path means several images,
            two annotations mean one image, or a class has no name.
    """
    annotations = read_annotations(boxes, box_format)
    files = ImageFiles(images)
    entries = match(annotations, files, split)
    if masks is not None:
        drawn = {storage.join(files.folder, name): mask for name, mask in find_masks(masks, files).items()}
        entries = [replace(entry, mask=drawn.get(entry.file)) for entry in entries]
    classes = _classes(annotations)
    class_of = {name: class_id for class_id, name in enumerate(classes)}
    category_ids = annotations.category_ids
    facts = [[e.name, [[b.class_name, b.corners] for b in e.annotation.boxes]] for e in entries]
    options: dict[str, Any] = {"outside": outside} if outside != "refuse" else {}
    if masks is not None:
        facts_of_masks = [[e.name, e.mask.identity] for e in entries if e.mask is not None]
        options["masks"] = fingerprint(facts_of_masks)
    return Reader(
        source=source,
        split=split,
        identity={"format": annotations.format, "boxes": fingerprint(facts)}
        | options
        | ({"relative": True} if relative else {}),
        entries=entries,
        read=functools.partial(_read_entry, class_of, source, outside, relative),
        classes=classes,
        input_names=InputNames(
            {f"{source}/{e.name}": _input_image(e) for e in entries if e.file}, category_ids, (files.folder,)
        ),
    )


def _input_image(entry: OwnEntry) -> InputImage:
    listed = entry.annotation.id is not None
    return InputImage(entry.annotation.id, entry.annotation.name if listed else entry.path)


def _classes(annotations: Annotations) -> tuple[str, ...]:
    """Background, then the class names in the order of their list, or of the alphabet."""
    used = {box.class_name: (image, box) for image in reversed(annotations.images) for box in image.boxes}
    if "" in used:
        image, box = used[""]
        raise InputError("the box has no class", file=image.file, field=box.where, expected="the name of its class")
    listed = annotations.classes or tuple(sorted(used))
    repeated = sorted({name for name in listed if listed.count(name) > 1})
    if repeated:
        file, expected = annotations.images[0].file, "a name of its own for each class: rename or join them"
        raise InputError("two classes of one name", file=file, field="classes", value=repeated, expected=expected)
    unknown = sorted(set(used) - set(listed))
    if unknown:
        image, box = used[unknown[0]]
        raise InputError(
            "a box has a class that the list of classes lacks",
            file=image.file,
            field=box.where,
            value=unknown[0],
            expected=f"one of {', '.join(listed)}",
        )
    names = [name for name in listed if name.lower() != BACKGROUND_NAME]
    if len(names) >= IGNORE_INDEX:
        raise InputError("too many classes for a label map", field="classes", value=len(names), expected="<= 254")
    return (BACKGROUND_NAME, *names)


def match(annotations: Annotations, files: ImageFiles, split: str) -> list[OwnEntry]:
    """Pair annotations with image files, in the order of the files.

    An annotation whose image is not there, or that cannot be used, becomes an entry whose reading fails.
    """
    names = image_names(files.names)
    found: dict[str, list[AnnotatedImage]] = defaultdict(list)
    lost: list[AnnotatedImage] = []
    for annotation in annotations.images:
        matches = files.find(annotation.name) or files.find(annotation.other_name)
        if len(matches) > 1:
            raise InputError(
                "the annotation may mean several images",
                file=annotation.file,
                field="image",
                value=annotation.name,
                expected=f"a path that only one file has; these match: {', '.join(matches[:4])}",
            )
        (found[matches[0]] if matches else lost).append(annotation)
    if not found:
        raise InputError(
            f"none of the {len(lost)} annotated images is below the folder of images",
            file=files.folder,
            field="images",
            value=lost[0].name,
            expected=f"files named as in the annotations; the folder has {', '.join(files.names[:3])}",
        )
    twice = next((each for each in found.values() if len(each) > 1), None)
    if twice is not None:
        first, second = twice[:2]
        raise InputError(
            "two annotations of one image",
            file=second.file,
            field="image",
            value=[first.name, second.name],
            expected="one: join their boxes, or give each file of the same name its folder",
        )
    entries = [
        OwnEntry(names[file], storage.join(files.folder, file), found[file][0], split, file)
        for file in files.names
        if file in found
    ]
    if annotations.others_are_empty:
        others = [file for file in files.names if file not in found]
        empty = [AnnotatedImage(file, storage.join(files.folder, file)) for file in others]
        entries += [OwnEntry(names[e.name], e.file, e, split, e.name) for e in empty]
    entries += [OwnEntry(each.name or each.file, "", each, split) for each in lost]
    return sorted(entries, key=lambda entry: entry.name)


def _read_entry(class_of: Mapping[str, int], source: str, outside: Outside, relative: bool, entry: OwnEntry) -> Record:
    return read_record(entry, class_of, source=source, outside=outside, relative=relative)


def read_record(
    entry: OwnEntry,
    class_of: Mapping[str, int],
    *,
    source: str = "own",
    outside: Outside = "refuse",
    relative: bool = False,
) -> Record:
    """Read and check one image with its boxes and, where each object has a polygon or run lengths, their masks.

    Args:
        entry: The image and its annotation.
        class_of: Class id of every class name.
        source: As `open_own`.
        outside: As `open_own`.
        relative: As `open_own`.

    Raises:
        RecordError: The image is missing, damaged or has another size than the annotation says; a box lies outside; or
            all boxes lie within 0..1 and are not meant so.
    """
    annotation = entry.annotation
    if annotation.problem is not None:
        raise annotation.problem
    if not entry.file:
        expected = "an image of this name below the folder of images"
        raise RecordError(
            "the image is missing", file=annotation.file, field="image", value=annotation.name, expected=expected
        )
    data, height, width = _read_upright(entry.file, annotation)
    kept = [box for box in annotation.boxes if not _has_no_area(box) and box.class_name.lower() != BACKGROUND_NAME]
    scale = (width, height) if relative or annotation.is_relative else (1, 1)
    try:
        if scale == (1, 1):
            refuse_relative([box.corners for box in kept])
        read = [_pixels(box, scale, height, width, outside) for box in kept]
    except RecordError as error:
        problem = error.problem
        if annotation.size is None and exif_orientation(storage.read_bytes(entry.file)) > 1:
            problem += " (the image is turned by its EXIF orientation)"
        named = annotation.name in str(error.field)
        field = error.field if named else f"{annotation.name}, {error.field}"
        raise error.at(file=annotation.file, field=field, problem=problem) from None
    class_ids, crowd = [class_of[box.class_name] for box in kept], [box.crowd for box in kept]
    masks = [mask for _, mask, _ in read if mask is not None]
    has_masks = bool(masks) and len(masks) == len(kept)
    label_map = encode_png(paint_masks((height, width), masks, class_ids, crowd)) if has_masks else None
    if entry.mask is not None:
        label_map = entry.mask.read(height, width, class_of)
    return Record(
        image_id=f"{source}/{entry.name}",
        source=source,
        split=entry.split,
        image=data,
        height=height,
        width=width,
        boxes_xyxy=np.array([corners for corners, _, _ in read], np.float32).reshape(-1, 4),
        class_ids=np.array(class_ids, np.int32),
        difficult=np.array([box.difficult for box in kept], bool),
        crowd=np.array(crowd, bool),
        gt_label_map=label_map,
        instance_masks=[rle.encode(mask) for mask in masks] if has_masks else None,
        num_clipped=sum(is_clipped for _, _, is_clipped in read),
    )


def _read_upright(file: str, annotation: AnnotatedImage) -> tuple[bytes, int, int]:
    """Bytes, height and width of the image as the annotation tool showed it.

    Raises:
        RecordError: The annotation states a size that the image has in neither orientation.
    """
    data, height, width = read_image(file)
    stated, stored, orientation = annotation.size, (width, height), exif_orientation(data)
    shown = stored[::-1] if orientation >= 5 else stored
    if stated is not None and stated not in (stored, shown):
        raise RecordError(
            "the image has another size than its annotation says",
            file=file,
            value=f"{width} x {height}",
            expected=f"{stated[0]} x {stated[1]}, of {annotation.file}",
        )
    if orientation == 1 or (stated == stored and stored != shown):
        return data, height, width
    return turned_by_exif(data), shown[1], shown[0]


def _pixels(
    box: Box, scale: tuple[int, int], height: int, width: int, outside: Outside
) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None, bool]:
    """Corners of a box in pixels (4,), clipped to the image; its mask (H, W) if it has one; whether either was cut."""
    corners = np.array(box.corners, np.float64) * (*scale, *scale)
    shown = [round(float(value), 2) for value in corners]
    if (corners[2:] < corners[:2]).any():
        expected = "x0 <= x1 and y0 <= y1"
        raise RecordError("the corners are in another order", field=box.where, value=shown, expected=expected)
    is_clipped = reaches_outside(
        corners.reshape(2, 2), height, width, outside, what="the box", field=box.where, value=shown
    )
    corners = np.clip(corners, 0, (width, height, width, height))
    if (corners[2:] <= corners[:2]).any():
        raise RecordError(
            "the box lies outside the image", field=box.where, value=shown, expected=f"in {width} x {height}"
        )
    polygons = box.mask
    if isinstance(polygons, list) and scale != (1, 1):
        polygons = [(np.reshape(polygon, (-1, 2)) * scale).ravel().tolist() for polygon in polygons]
    try:
        mask, mask_is_clipped = read_mask(polygons, height, width, outside)
    except RecordError as error:
        raise error.at(field=f"{box.where}, {error.field}") from None
    return corners, mask, is_clipped or mask_is_clipped
