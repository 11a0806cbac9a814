"""Reader of the Semantic Boundaries Dataset (SBD) and of train_aug, VOC 2012's training set enlarged by it.

    dataset/img/ID.jpg           the image, which is one of VOC's
    dataset/cls/ID.mat           GTcls.Segmentation: class ids 0..20 in VOC's order, without void
    dataset/inst/ID.mat          GTinst.Segmentation: object numbers 0..M; GTinst.Categories: the class of each object
    dataset/train.txt, val.txt   the lists

The root is the folder `dataset` or one that holds it (benchmark_RELEASE). With a VOC devkit, images and boxes are VOC's
(JPEGImages, Annotations). Without one, images are SBD's and boxes are the tight boxes of its objects.

The split train_aug is VOC 2012's train followed by the images of SBD's train and val that are in neither VOC's train
nor VOC's val: 10,582 images. Rows of VOC's train have VOC's masks and the split name `train`; the other rows have SBD's
masks and the split name `aug`. The split aug is only those other rows, 9,118 images: in the paper's semi-supervision
only VOC's train has masks.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.images import encode_png
from boxsup_dist.data.schema import BACKGROUND, VOC_CLASSES, Record
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import fingerprint
from boxsup_dist.records import voc
from boxsup_dist.records.files import check_map, read_image, read_mat_field
from boxsup_dist.records.instances import Objects, make_objects, masks_of_boxes
from boxsup_dist.records.reader import Annotation, ListEntry, Reader, make_record, published_images

TRAIN_AUG = "train_aug"
VOC_ROWS, SBD_ROWS = "train", "aug"  # split names of the rows of train_aug


def open_splits(sbd_root: str, split: str, *, voc_root: str | None = None, source: str | None = None) -> Reader:
    """Return the reader of splits of SBD.

    Args:
        sbd_root: Path or URI of the data set, see `find_root`.
        split: `train`, `val` or a list file, or several of them joined by `+`; or `train_aug` or `aug`.
        voc_root: A VOC devkit to take images and boxes from; train_aug and aug need VOC 2012's.
        source: Name of the data set in the image ids; by default VOC's year folder in lower case if `voc_root` is
            given (the images are VOC's), else sbd.

    Raises:
        InputError: If a root or list is bad, or if the splits share images.
    """
    root = find_root(sbd_root)
    devkit = None if voc_root is None else voc.find_root(voc_root)
    name = source or ("sbd" if devkit is None else devkit.rsplit("/", 1)[-1].lower())
    read = functools.partial(_read_entry, root, devkit, name, split == TRAIN_AUG)
    if split in (TRAIN_AUG, SBD_ROWS):
        if devkit is None:
            problem = f"the split {split} needs the lists of VOC 2012: set voc_root"
            raise InputError(problem, field="voc_root", expected="VOC 2012's devkit")
        own, others = (voc.read_split(devkit, f"Segmentation/{part}") for part in ("train", "val"))
        entries = train_aug(own, others, read_ids(root, "train"), read_ids(root, "val"))
        entries = [entry for entry in entries if split == TRAIN_AUG or entry.split == SBD_ROWS]
    else:
        parts = split.split("+")
        entries = [ListEntry(i, voc.list_name(part)) for part in parts for i in read_ids(root, part)]
        voc.refuse_shared(entries)
    return Reader(
        source=name,
        split="+".join(map(voc.list_name, split.split("+"))),
        identity={"ids": fingerprint(entries), "masks": "sbd", "boxes": "sbd" if devkit is None else "voc"},
        entries=entries,
        read=read,
        published=published_images([f"sbd/{part}" for part in split.split("+")]),
    )


def find_root(sbd_root: str) -> str:
    """Find the folder that holds img, cls and inst: `sbd_root`, or `dataset` or `benchmark_RELEASE/dataset` in it.

    Raises:
        InputError: If there is none.
    """
    root = storage.absolute(sbd_root)
    for parts in ((), ("dataset",), ("benchmark_RELEASE", "dataset")):
        folder = storage.join(root, *parts)
        if storage.exists(storage.join(folder, "cls")):
            return folder
    raise InputError("not the data set SBD", file=root, expected="a folder that holds img, cls and inst, or `dataset`")


def read_ids(root: str, split: str) -> list[str]:
    """Read the image ids of SBD's list `train` or `val`, or of a list file (a path that ends in .txt).

    Raises:
        InputError: If the list is missing or bad.
    """
    own = storage.join(root, f"{split}.txt")
    if split.endswith(".txt") or not storage.exists(own):
        own = storage.absolute(split)
        if not split.endswith(".txt") or not storage.exists(own):
            expected = f"train, val, {TRAIN_AUG}, {SBD_ROWS} or a list file"
            raise InputError("no such split", file=root, field="split", value=split, expected=expected)
    return voc.read_list(own)


def train_aug(voc_train: list[str], voc_val: list[str], sbd_train: list[str], sbd_val: list[str]) -> list[ListEntry]:
    """Make the list train_aug: VOC's train in its order, then, sorted, SBD's images that neither VOC list has."""
    added = sorted({*sbd_train, *sbd_val} - {*voc_train, *voc_val})
    return [*(ListEntry(i, VOC_ROWS) for i in voc_train), *(ListEntry(i, SBD_ROWS) for i in added)]


def _read_entry(root: str, devkit: str | None, source: str, augmented: bool, entry: ListEntry) -> Record:
    if augmented and entry.split == VOC_ROWS:
        assert devkit is not None
        return voc.read_record(devkit, *entry, source=source)
    return read_record(root, *entry, devkit=devkit, source=source)


def read_record(root: str, image_id: str, split: str, *, devkit: str | None = None, source: str = "sbd") -> Record:
    """Read one image with SBD's class mask and instance masks.

    Args:
        root: The folder that holds img, cls and inst.
        image_id: VOC's name of the image.
        split: Split name of the record.
        devkit: VOC's year folder, to take the image and its boxes from; `masks_of_boxes` matches SBD's objects to
            the boxes. None: the image is SBD's, and the boxes are those of its objects.
        source: Name of the data set in the record's image_id.

    Raises:
        RecordError: If a file is missing or damaged, a map has another size than the image or holds values that are
            no class or object, or VOC's annotation is bad.
    """
    folders = (root, "img") if devkit is None else (devkit, "JPEGImages")
    image = _, height, width = read_image(storage.join(*folders, image_id + ".jpg"))
    label_map = _read_classes(root, image_id, height, width)
    objects = _read_objects(root, image_id, height, width)
    if devkit is None:
        count = len(objects.numbers)
        boxes = objects.boxes_xyxy.astype(np.float32)
        annotation = Annotation(boxes, objects.class_ids, np.zeros(count, bool))
        masks = [objects.mask(index) for index in range(count)]
    else:
        annotation = voc.read_annotation(devkit, image_id, image)
        masks = masks_of_boxes(objects, annotation.boxes_xyxy, annotation.class_ids)
    return make_record(image_id, split, source, image, annotation, encode_png(label_map), masks)


def _read_classes(root: str, image_id: str, height: int, width: int) -> NDArray[np.uint8]:
    """Read the class ids (H, W)."""
    file = storage.join(root, "cls", image_id + ".mat")
    values = read_mat_field(file, "GTcls", "Segmentation")
    largest = len(VOC_CLASSES) - 1
    return check_map(values, height, width, largest, file=file, field="GTcls.Segmentation").astype(np.uint8)


def _read_objects(root: str, image_id: str, height: int, width: int) -> Objects:
    """Read the objects that have a pixel."""
    file = storage.join(root, "inst", image_id + ".mat")
    categories = read_mat_field(file, "GTinst", "Categories")
    class_ids = np.ravel(categories) if isinstance(categories, np.ndarray) else np.zeros(0)
    if not np.isin(class_ids, np.arange(1, len(VOC_CLASSES))).all():
        expected = f"1..{len(VOC_CLASSES) - 1}"
        value = class_ids[:10].tolist()
        raise RecordError(
            "an object of unknown class", file=file, field="GTinst.Categories", value=value, expected=expected
        )
    values = read_mat_field(file, "GTinst", "Segmentation")
    object_map = check_map(values, height, width, len(class_ids), file=file, field="GTinst.Segmentation")
    numbers = np.setdiff1d(object_map, [BACKGROUND])
    return make_objects(object_map, numbers, class_ids.astype(np.int32)[numbers.astype(int) - 1])
