"""`Reader`: what a data set gives to build.py, a list of images and a function that reads one image as a Record.

The other names here are shared by the readers: published numbers of images, `Annotation`, and `make_record`.

To add a data set, write records/NAME.py with a function `open_splits(...) -> Reader`, and test it in
tests/unit/records/test_NAME.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.input_names import InputNames
from boxsup_dist.data.schema import VOC_CLASSES, Record
from boxsup_dist.errors import SettingError

# Number of images in each list, as published. COCO's lists are its files instances_*.json.
PUBLISHED = {
    "voc2007/Main/trainval": 5011,
    "voc2007/Main/test": 4952,
    "voc2010/Main/train": 4998,
    "voc2010/Main/val": 5105,
    "voc2012/Segmentation/train": 1464,
    "voc2012/Segmentation/val": 1449,
    "voc2012/Segmentation/trainval": 2913,
    "voc2012/Segmentation/test": 1456,
    "voc2012/Main/trainval": 11540,
    "sbd/train": 8498,
    "sbd/val": 2857,
    "sbd/train_aug": 10582,
    "sbd/aug": 9118,
    "coco/train2014": 82783,
    "coco/val2014": 40504,
    "coco/train2017": 118287,
    "coco/val2017": 5000,
    "context/train": 4998,
    "context/val": 5105,
}


def published_images(names: Sequence[str]) -> int | None:
    """Return the number of images that these lists have together, as published; None if PUBLISHED lacks one of them."""
    counts = [PUBLISHED.get(name) for name in names]
    return sum(count for count in counts if count is not None) if None not in counts else None


class Entry(Protocol):
    """One image of a data set: all that the reader's `read` needs to read it."""

    @property
    def name(self) -> str:
        """The image's own name; problems are reported under it."""

    @property
    def left_out(self) -> Sequence[str]:
        """One sentence for the user per annotation of the image that the record will not have."""


class ListEntry(NamedTuple):
    """An image of a list of image ids."""

    name: str
    split: str

    @property
    def left_out(self) -> Sequence[str]:
        """Empty: a list of ids says nothing about annotations."""
        return ()


class Annotation(NamedTuple):
    """The K annotated objects of an image; K may be 0."""

    boxes_xyxy: NDArray[np.float32]  # (K, 4), 0-based half-open
    class_ids: NDArray[np.int32]  # (K,), 1..C-1
    difficult: NDArray[np.bool_]  # (K,)
    num_clipped: int = 0  # boxes that were cut at the image's border by more than rounding

    @classmethod
    def nothing(cls) -> Annotation:
        """Return the annotation of an image without annotated objects."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))


def make_record(
    name: str,
    split: str,
    source: str,
    image: tuple[bytes, int, int],
    annotation: Annotation,
    gt_label_map: bytes | None,
    instance_masks: list[bytes] | None,
) -> Record:
    """Make the record of an image of a data set without crowds; its image_id is `source/name`.

    Args:
        name: The image's own name.
        split: Split of the data set.
        source: Name of the data set.
        image: Bytes, height and width of the image, as `files.read_image` returns them.
        annotation: The image's K boxes.
        gt_label_map: PNG of the ground-truth mask; None: none.
        instance_masks: K masks encoded by `rle.encode`; None: the data set has no mask per object.
    """
    data, height, width = image
    return Record(
        image_id=f"{source}/{name}",
        source=source,
        split=split,
        image=data,
        height=height,
        width=width,
        boxes_xyxy=annotation.boxes_xyxy,
        class_ids=annotation.class_ids,
        difficult=annotation.difficult,
        crowd=np.zeros(len(annotation.class_ids), bool),
        gt_label_map=gt_label_map,
        instance_masks=instance_masks,
        num_clipped=annotation.num_clipped,
    )


@dataclass(frozen=True)
class Reader:
    """One or several splits of a data set, ready to be read image by image.

    `read` reads the image of an entry and raises RecordError if the image can't be used. It is pickled into every task,
    so it must be small: what belongs to one image is in its entry.
    """

    source: str  # name of the data set, first part of the image ids
    split: str  # name of the split, or several joined by +
    identity: dict[str, Any]  # JSON values that distinguish this content from any other; stored in the manifest
    entries: Sequence[Any]  # Entry objects, one per image, in the order of the table's rows
    read: Callable[[Any], Record]
    classes: tuple[str, ...] = field(default=VOC_CLASSES)  # background first
    published: int | None = None  # number of images of the split, as published; None: unknown
    input_names: InputNames | None = None  # what the annotations call images and classes; None: as the records do


def draw(reader: Reader, num_images: int) -> Reader:
    """The reader of some of the images, drawn by a hash of their names: the same ones in every call.

    Args:
        reader: The reader of all images.
        num_images: How many; all if the reader has no more.

    Raises:
        SettingError: `num_images` is below 1.
    """
    if num_images < 1:
        raise SettingError("a setting is out of range", field="draw", value=num_images, expected=">= 1")

    def place(index: int) -> tuple[str, int]:
        return hashlib.sha256(reader.entries[index].name.encode()).hexdigest(), index

    chosen = sorted(sorted(range(len(reader.entries)), key=place)[:num_images])
    entries = [reader.entries[index] for index in chosen]
    return replace(reader, entries=entries, identity={**reader.identity, "draw": num_images}, published=None)


def count_records(records: Sequence[Record], classes: Sequence[str] = VOC_CLASSES) -> dict[str, int]:
    """Numbers of images, of those with boxes and masks, of boxes by kind, clipped, and by class (`boxes.NAME`)."""
    class_ids = Counter(int(class_id) for record in records for class_id in record.class_ids)
    return {
        "images": len(records),
        "boxes": sum(class_ids.values()),
        "difficult": sum(int(record.difficult.sum()) for record in records),
        "crowd": sum(int(record.crowd.sum()) for record in records),
        "clipped": sum(record.num_clipped for record in records),
        "with_boxes": sum(len(record.class_ids) > 0 for record in records),
        "with_mask": sum(record.gt_label_map is not None for record in records),
        "with_instances": sum(record.instance_masks is not None for record in records),
        **{f"boxes.{classes[class_id]}": count for class_id, count in sorted(class_ids.items())},
    }
