"""Reader of COCO's instance annotations: files `instances_*.json`, each with a folder of images.

    images       id, file_name, height, width
    categories   id, name
    annotations  image_id, category_id, iscrowd, bbox, segmentation

A `bbox` is [x, y, width, height], from the image's upper left corner. A `segmentation` is a list of polygons
[x, y, x, y, ...], which are united, or run lengths {size, counts}, compressed or not.

`read_index` reads a file once; `read_record` needs only the index's entry of its image. A record has the boxes of the
annotations. Its label map is painted from their masks: crowds first, as ignored pixels, then objects, larger ones
first, so the smaller of two lies in front. A category named background is the background, and its annotations are left
out. An image that can't be used raises RecordError, a bad file InputError.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data import rle
from boxsup_dist.data.images import encode_png
from boxsup_dist.data.input_names import InputImage, InputNames
from boxsup_dist.data.schema import IGNORE_INDEX, VOC_CLASSES, VOC_NAME_OF_COCO, Record
from boxsup_dist.errors import InputError, RecordError, SettingError
from boxsup_dist.io import storage
from boxsup_dist.records.boxes import is_numbers, reaches_outside, refuse_relative
from boxsup_dist.records.coco_masks import paint_masks, read_mask
from boxsup_dist.records.files import read_image, refuse_turned
from boxsup_dist.records.reader import Reader, published_images
from boxsup_dist.records.settings import ClassList, Outside

_NOT_CHOSEN = 0  # class id of a category that is left out


@dataclass
class CocoImage:
    """One image of an annotation file, with its annotations of the chosen classes as the file has them."""

    file_name: str
    height: int
    width: int
    annotations: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # one sentence per annotation whose box has no area
    id: int | None = None  # in the file

    @property
    def name(self) -> str:
        """The file's path in the folder of images, without its suffix; COCO keeps it unique."""
        return str(PurePosixPath(self.file_name).with_suffix(""))


@dataclass(frozen=True)
class CocoIndex:
    """The content of an annotation file by image, in the file's order of images."""

    images: list[CocoImage]
    classes: tuple[str, ...]  # background, then the chosen classes
    class_of: dict[int, int]  # category id -> class id, 0 for a category that is not chosen
    fingerprint: str  # hash of the file's content


@dataclass(frozen=True)
class CocoEntry:
    """An image with its folder and split: an `Entry` of the reader."""

    image: CocoImage
    folder: str
    split: str

    @property
    def name(self) -> str:
        """The image's own name: its file name without the suffix."""
        return self.image.name

    @property
    def left_out(self) -> Sequence[str]:
        """One sentence per annotation of the image that the record will not have."""
        return self.image.left_out


def open_splits(
    annotations: Sequence[str],
    images: Sequence[str],
    split: str,
    *,
    classes: ClassList = "voc",
    only_with_objects: bool = False,
    source: str = "coco",
    outside: Outside = "refuse",
) -> Reader:
    """Return the reader of one or several annotation files, whose images form one table in the order of the files.

    Args:
        annotations: Paths or URIs of the annotation files.
        images: The folder of images of each file.
        split: The split name of each file, joined by `+` (train2014+val2014).
        classes: As `read_index`.
        only_with_objects: As `read_index`.
        source: Name of the data set in the image ids.
        outside: As `read_record`.

    Raises:
        SettingError: If the number of folders or of split names is not the number of files.
        InputError: If a file is bad, has other categories than the first file, or shares images with another file.
    """
    splits = split.split("+")
    for name, values in (("coco_images", images), ("split", splits)):
        if len(values) != len(annotations):
            expected = f"{len(annotations)}, one per annotation file"
            raise SettingError("not one value per annotation file", field=name, value=len(values), expected=expected)
    entries: list[CocoEntry] = []
    indexes = []
    for file, folder, name in zip(
        map(storage.absolute, annotations), map(storage.absolute, images), splits, strict=True
    ):
        index = read_index(file, classes, only_with_objects=only_with_objects)
        entries += [CocoEntry(image, folder, name) for image in index.images]
        indexes.append(replace(index, images=[]))
        if (index.classes, index.class_of) != (indexes[0].classes, indexes[0].class_of):
            raise InputError(
                "the file has other categories than the first file: build one table per file",
                file=file,
                field="categories",
                value=sorted(index.class_of),
                expected=str(sorted(indexes[0].class_of)),
            )
    _refuse_repeated([entry.name for entry in entries], "images.file_name", " + ".join(annotations))
    return Reader(
        source=source,
        split=split,
        identity={"annotations": "+".join(index.fingerprint for index in indexes)}
        | ({"outside": outside} if outside != "refuse" else {}),
        entries=entries,
        read=functools.partial(_read_entry, indexes[0].class_of, source, outside),
        classes=indexes[0].classes,
        published=None if only_with_objects else published_images([f"coco/{name}" for name in splits]),
        input_names=InputNames(
            {f"{source}/{entry.name}": InputImage(entry.image.id, entry.image.file_name) for entry in entries},
            category_ids(indexes[0]),
            tuple(dict.fromkeys(entry.folder for entry in entries)),
        ),
    )


def category_ids(index: CocoIndex) -> dict[str, int]:
    """The category id of each chosen class, by its name in the records."""
    return {index.classes[class_id]: category for category, class_id in index.class_of.items() if class_id}


def _read_entry(class_of: Mapping[int, int], source: str, outside: Outside, entry: CocoEntry) -> Record:
    return read_record(entry.folder, entry.image, entry.split, class_of, source=source, outside=outside)


def read_index(file: str, classes: ClassList = "voc", *, only_with_objects: bool = False) -> CocoIndex:
    """Read an annotation file.

    An annotation whose box has no area inside the image is left out and named in `CocoImage.left_out`; COCO has a few.

    Args:
        file: Path or URI of the file.
        classes: "voc" keeps VOC's 20 classes, "all" keeps all categories of the file, in the order of their ids.
        only_with_objects: Leave out the images without an object of the chosen classes.

    Raises:
        InputError: If the file is no JSON; a list or field is missing or has another type; an id, a file name or the
            name of a category occurs twice; an annotation belongs to no image of the file; "voc" is asked and a class
            of VOC is missing; or a file name leaves the folder of images.
    """
    data = storage.read_bytes(file)
    content = storage.parse_json(data, file=file)
    names, class_of = _choose_classes(_items(content, "categories", {"id": int, "name": str}, file), classes, file)
    images = {}
    for item in _items(content, "images", {"id": int, "file_name": str, "height": int, "width": int}, file):
        name = "/".join(part for part in item["file_name"].split("/") if part != ".")  # ./1.jpg is 1.jpg
        storage.safe_name(name, file=file, field="images.file_name")
        images[item["id"]] = CocoImage(name, item["height"], item["width"], id=item["id"])
    _refuse_repeated([item["id"] for item in content["images"]], "images.id", file)
    _refuse_repeated([image.name for image in images.values()], "images.file_name", file)
    for item in _items(content, "annotations", {"image_id": int, "category_id": int}, file):
        if item["image_id"] not in images:
            raise InputError(
                "an annotation belongs to an image that the file does not list",
                file=file,
                field=f"{_name(item)}, image_id",
                value=item["image_id"],
                expected="the id of one of the file's images",
            )
        _add(images[item["image_id"]], item, class_of)
    kept = [image for image in images.values() if image.annotations or not only_with_objects]
    if not kept:
        raise InputError("the file names no image to use", file=file)
    return CocoIndex(kept, names, class_of, hashlib.sha256(data).hexdigest()[:16])


def _items(content: Any, key: str, fields: Mapping[str, type], file: str) -> list[dict[str, Any]]:
    """Return the list `key` of the file; raise InputError unless every item has these fields with these types."""
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise InputError("not an annotation file of COCO instances", file=file, field=key, expected="a list")
    for number, item in enumerate(items):
        for name, kind in fields.items():
            value = item.get(name) if isinstance(item, dict) else None
            if not isinstance(value, kind):
                raise InputError(
                    "a value is missing or has another type",
                    file=file,
                    field=f"{key}[{number}].{name}",
                    value=value,
                    expected=kind.__name__ + (" without quotes" if isinstance(value, str) else ""),
                )
    return items


def _choose_classes(
    categories: list[dict[str, Any]], classes: ClassList, file: str
) -> tuple[tuple[str, ...], dict[int, int]]:
    ordered = sorted(categories, key=lambda category: category["id"])
    _refuse_repeated([category["id"] for category in ordered], "categories.id", file)
    expected = "a name of its own for each category: rename or join them in the file"
    _refuse_repeated([category["name"] for category in ordered], "categories.name", file, expected)
    if classes == "all":
        own = {c["id"]: _NOT_CHOSEN for c in ordered if c["name"].strip(" _").lower() == "background"}
        ordered = [c for c in ordered if c["id"] not in own]
        if len(ordered) >= IGNORE_INDEX:
            raise InputError("too many categories for a label map", file=file, value=len(ordered), expected="<= 254")
        class_of = own | {c["id"]: k for k, c in enumerate(ordered, start=1)}
        return ("background", *(c["name"] for c in ordered)), class_of
    voc_names = {c["id"]: VOC_NAME_OF_COCO.get(c["name"], c["name"]) for c in ordered}
    missing = set(VOC_CLASSES[1:]) - set(voc_names.values())
    if missing:
        raise InputError(
            f"the file lacks classes of VOC: {', '.join(sorted(missing))}",
            file=file,
            field="categories.name",
            value=sorted(c["name"] for c in ordered),
            expected="all 20 classes of VOC, or --classes all",
        )
    class_of = {i: VOC_CLASSES.index(n) if n in VOC_CLASSES[1:] else _NOT_CHOSEN for i, n in voc_names.items()}
    return VOC_CLASSES, class_of


def _refuse_repeated(values: Sequence[Any], name: str, file: str, expected: str = "each value once") -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise InputError(
            "a value that must be unique occurs twice", file=file, field=name, value=repeated[:5], expected=expected
        )


def _add(image: CocoImage, annotation: dict[str, Any], class_of: Mapping[int, int]) -> None:
    """Add an annotation to its image unless its class is not chosen or its box has no area.

    An unknown category is added too; `read_record` reports it.
    """
    if class_of.get(annotation["category_id"]) == _NOT_CHOSEN:
        return
    bbox: Any = annotation.get("bbox")
    if is_numbers(bbox, 4):
        x, y, width, height = bbox
        if min(x + width, image.width) <= max(x, 0) or min(y + height, image.height) <= max(y, 0):
            image.left_out.append(f"{_name(annotation)} is left out: its box {bbox} has no area")
            return
    image.annotations.append(annotation)


def _name(annotation: Mapping[str, Any]) -> str:
    return f"annotation {annotation.get('id', '(without id)')}"


def read_record(
    images_folder: str,
    image: CocoImage,
    split: str,
    class_of: Mapping[int, int],
    *,
    source: str = "coco",
    outside: Outside = "refuse",
) -> Record:
    """Read and check one image with its boxes, its instance masks and the label map painted from them.

    If one annotation has no segmentation, the record has neither instance masks nor a label map.

    Args:
        images_folder: Path or URI of the folder of images.
        image: The image's entry in the index.
        split: Split name of the record.
        class_of: Class id of every category id, from the index.
        source: Name of the data set; the record's image_id is `source/NAME` with the image's name.
        outside: What to do with a box or polygon that reaches more than 1 px beyond the image (less is clipped):
            "refuse" raises, "clip" cuts it off.

    Raises:
        RecordError: If the image is missing, damaged or has another size than the file says; a category is unknown; a
            box or polygon lies outside; all boxes lie within 0..1; or a value is no box, polygon or run lengths.
    """
    file = storage.join(images_folder, image.file_name)
    data, height, width = read = read_image(file)
    if (height, width) != (image.height, image.width):
        refuse_turned(read, image.height, image.width, file=file)
        stated = f"{image.width} x {image.height}"
        raise RecordError(
            "the image has another size than its annotation says",
            file=file,
            value=f"{width} x {height}",
            expected=stated,
        )
    boxes, class_ids, crowd, num_clipped = [], [], [], 0
    masks: list[NDArray[np.bool_] | None] = []
    for annotation in image.annotations:
        try:
            class_ids.append(class_id_of(annotation, class_of))
            box, box_is_clipped = _box(annotation.get("bbox"), height, width, outside)
            mask, mask_is_clipped = read_mask(annotation.get("segmentation"), height, width, outside)
            boxes.append(box)
            masks.append(mask)
            num_clipped += box_is_clipped or mask_is_clipped
            crowd.append(is_crowd(annotation))
        except RecordError as error:
            raise error.at(file=file, field=f"{_name(annotation)}, {error.field}") from None
    try:
        refuse_relative(boxes)
    except RecordError as error:
        raise error.at(file=file) from None
    drawn = [mask for mask in masks if mask is not None]
    has_masks = len(drawn) == len(masks)
    label_map = paint_masks((height, width), drawn, class_ids, crowd) if has_masks else None
    return Record(
        image_id=f"{source}/{image.name}",
        source=source,
        split=split,
        image=data,
        height=height,
        width=width,
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        class_ids=np.array(class_ids, np.int32),
        difficult=np.zeros(len(boxes), bool),
        crowd=np.array(crowd, bool),
        gt_label_map=None if label_map is None else encode_png(label_map),
        instance_masks=[rle.encode(mask) for mask in drawn] if has_masks else None,
        num_clipped=num_clipped,
    )


def class_id_of(annotation: Mapping[str, Any], class_of: Mapping[int, int]) -> int:
    """The class id of an annotation's category; RecordError if the file does not list the category."""
    category = annotation["category_id"]
    if category not in class_of:
        expected = f"an id of the file's categories ({', '.join(map(str, sorted(class_of)[:10])) or 'it has none'})"
        raise RecordError("unknown category", field="category_id", value=category, expected=expected)
    return class_of[category]


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation is of a group of objects; RecordError if `iscrowd` is neither 0 nor 1."""
    value = annotation.get("iscrowd", 0)
    if value not in (0, 1):
        raise RecordError("neither an object nor a crowd", field="iscrowd", value=value, expected="0 or 1")
    return bool(value)


def _box(bbox: Any, height: int, width: int, outside: Outside) -> tuple[NDArray[np.float64], bool]:
    """Convert a bbox to a box (4,) xyxy, 0-based and half-open, clipped to the image; and whether that cut it."""
    if not is_numbers(bbox, 4):
        raise RecordError("the box is not four numbers", field="bbox", value=bbox, expected="[x, y, width, height]")
    box = np.array([bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]], np.float64)
    points = box.reshape(2, 2)
    is_clipped = reaches_outside(points, height, width, outside, what="the box", field="bbox", value=bbox)
    return np.clip(box, 0, (width, height, width, height)), is_clipped
