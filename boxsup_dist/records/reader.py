"""What every data set gives the job that stores records: a list of images and a function that reads one of them.

Besides it what several readers share: the published numbers of images, annotations and the record made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from boxsup_dist.data.schema import VOC_CLASSES, Record

# Images in each list as its makers published it. COCO's are those of its instances_*.json.
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
    """Images that these lists of PUBLISHED have together as published; None if one of them is not known."""
    counts = [PUBLISHED.get(name) for name in names]
    return sum(count for count in counts if count is not None) if None not in counts else None


class Entry(Protocol):
    """One image of a data set and all that its reader needs to know of it."""

    @property
    def name(self) -> str:
        """The image's own name, which problems are told by."""

    @property
    def left_out(self) -> Sequence[str]:
        """Annotations that will be left out, told for the user."""


class ListEntry(NamedTuple):
    """An image of a list of ids."""

    name: str
    split: str

    @property
    def left_out(self) -> Sequence[str]:
        """None: lists tell nothing of annotations."""
        return ()


class Annotation(NamedTuple):
    """The objects of an image; K may be 0."""

    boxes_xyxy: np.ndarray  # float32 (K, 4)
    class_ids: np.ndarray  # int32 (K,)
    difficult: np.ndarray  # bool (K,)

    @classmethod
    def nothing(cls) -> Annotation:
        """Of an image whose objects nobody marked."""
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
    """The record of an image (bytes, height, width) of a data set that knows no crowds; its id is `source/name`."""
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
    )


@dataclass(frozen=True)
class Reader:
    """One or several splits of a data set, ready to be read image by image.

    `read` must be picklable and small, as every task gets it: what belongs to an image is in its entry. It raises
    RecordError for an image that can't be used.
    """

    source: str  # name of the data set in the image ids
    split: str  # name of the split, or several joined by +
    identity: dict[str, Any]  # JSON values that tell this content from another, kept in the manifest
    entries: Sequence[Any]  # Entry objects, one an image, in the table's order
    read: Callable[[Any], Record]
    classes: tuple[str, ...] = field(default=VOC_CLASSES)  # background first
    published: int | None = None  # images that the split has as published, where that is known
