"""The inventory of a folder of data sets: per split the images, and how many have boxes, masks and instance masks.

It reads lists, file names and COCO's annotation files, but no image and no mask, so it takes seconds. Whether every
file is good is checked when the records table is built.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.records import coco, sbd, voc
from boxsup_dist.records.reader import published_images

_DEPTH = 3  # levels of folders below the given one in which data sets are searched
_MAIN_LISTS = ("train", "val", "trainval", "test")  # the other lists of ImageSets/Main are of single classes


@dataclass(frozen=True)
class Count:
    """One split of a data set; all numbers are images."""

    source: str
    folder: str
    split: str
    images: int
    absent: int  # images of the list without a file
    boxes: int
    masks: int
    instances: int
    published: int | None  # images of the published list; None: unknown


def take_inventory(root: str) -> list[Count]:
    """Count every split of every data set in a folder, a path or URI.

    Raises:
        InputError: If the folder holds no data set, or a list or annotation file is bad.
    """
    roots = _find(storage.absolute(root), _DEPTH)
    devkits = {folder.rsplit("/", 1)[-1]: folder for kind, folder in roots if kind is _count_voc}
    counts: list[Count] = []
    for kind, folder in roots:
        counts += kind(folder, devkits)
    if not counts:
        expected = "a folder that holds a VOC devkit, SBD, COCO or PASCAL-Context"
        raise InputError("no data set found", file=storage.absolute(root), expected=expected)
    return counts


_Counter = Callable[[str, dict[str, str]], Iterator[Count]]


def _find(folder: str, depth: int) -> list[tuple[_Counter, str]]:
    """Find the data sets in a folder, each with the function that counts it."""
    names = set(storage.list_names(folder))
    if {"JPEGImages", "ImageSets"} <= names:
        return [(_count_voc, folder)]
    if {"cls", "inst"} <= names:
        return [(_count_sbd, folder)]
    if "annotations" in names and _instance_files(folder):
        return [(_count_coco, folder)]
    if {"trainval", "labels.txt"} <= names:
        return [(_count_context, folder)]
    if not depth:
        return []
    inside = [_find(storage.join(folder, name), depth - 1) for name in sorted(names) if "." not in name]
    return [found for part in inside for found in part]


def _names(*parts: str) -> set[str]:
    """Return the file names in a folder, without their suffixes."""
    return {name.rpartition(".")[0] for name in storage.list_names(storage.join(*parts))}


def _having(ids: Collection[str], *folders: set[str]) -> int:
    return sum(any(image_id in folder for folder in folders) for image_id in ids)


def _count_voc(root: str, devkits: dict[str, str]) -> Iterator[Count]:
    images, boxes = _names(root, "JPEGImages"), _names(root, "Annotations")
    masks = _names(root, voc.MASK_FOLDERS[0]) | _names(root, voc.MASK_FOLDERS[1])
    instances = _names(root, voc.OBJECT_FOLDER)
    year = root.rsplit("/", 1)[-1].lower()
    for folder in voc.LIST_FOLDERS:
        for name in sorted(_names(root, "ImageSets", folder)):
            if folder == "Main" and name not in _MAIN_LISTS:
                continue
            ids = voc.read_list(storage.join(root, "ImageSets", folder, f"{name}.txt"))
            split = f"{folder}/{name}"
            yield Count(
                source=year,
                folder=root,
                split=split,
                images=len(ids),
                absent=len(ids) - _having(ids, images),
                boxes=_having(ids, boxes),
                masks=_having(ids, masks),
                instances=_having(ids, instances),
                published=published_images([f"{year}/{split}"]),
            )


def _count_sbd(root: str, devkits: dict[str, str]) -> Iterator[Count]:
    """Count SBD's own splits, and train_aug if the inventory's folder also holds VOC 2012."""
    images, masks, instances = _names(root, "img"), _names(root, "cls"), _names(root, "inst")
    lists = {name: sbd.read_ids(root, name) for name in ("train", "val") if name in _names(root)}
    for name, ids in lists.items():
        have = _having(ids, instances)
        absent, published = len(ids) - _having(ids, images), published_images([f"sbd/{name}"])
        yield Count("sbd", root, name, len(ids), absent, have, _having(ids, masks), have, published)
    devkit = devkits.get("VOC2012")
    if devkit is None or len(lists) < 2:
        return
    own, others = (voc.read_split(devkit, f"Segmentation/{name}") for name in ("train", "val"))
    parts = {sbd.VOC_ROWS: set[str](), sbd.SBD_ROWS: set[str]()}
    for entry in sbd.train_aug(own, others, lists["train"], lists["val"]):
        parts[entry.split].add(entry.name)
    from_voc, from_sbd = parts[sbd.VOC_ROWS], parts[sbd.SBD_ROWS]
    both = from_voc | from_sbd
    yield Count(
        source="voc2012 + sbd",
        folder=root,
        split=sbd.TRAIN_AUG,
        images=len(both),
        absent=len(both) - _having(both, _names(devkit, "JPEGImages")),
        boxes=_having(both, _names(devkit, "Annotations")),
        masks=_having(from_voc, _names(devkit, "SegmentationClass")) + _having(from_sbd, masks),
        instances=_having(from_voc, _names(devkit, voc.OBJECT_FOLDER)) + _having(from_sbd, instances),
        published=published_images([f"sbd/{sbd.TRAIN_AUG}"]),
    )


def _instance_files(root: str) -> list[str]:
    names = storage.list_names(storage.join(root, "annotations"))
    return [name for name in names if name.startswith("instances_") and name.endswith(".json")]


def _count_coco(root: str, devkits: dict[str, str]) -> Iterator[Count]:
    """Count with all categories. An image without annotations counts as one with a mask, all background."""
    for file in _instance_files(root):
        name = file.removeprefix("instances_").removesuffix(".json")
        index = coco.read_index(storage.join(root, "annotations", file), "all")
        files = set(storage.list_names(storage.join(root, name)))
        drawn = sum(all(item.get("segmentation") for item in image.annotations) for image in index.images)
        yield Count(
            source="coco",
            folder=root,
            split=name,
            images=len(index.images),
            absent=sum(image.file_name not in files for image in index.images),
            boxes=sum(bool(image.annotations) for image in index.images),
            masks=drawn,
            instances=drawn,
            published=published_images([f"coco/{name}"]),
        )


def _count_context(root: str, devkits: dict[str, str]) -> Iterator[Count]:
    """Count the lists of VOC 2010 if the inventory's folder also holds it, else only the label maps."""
    masks = _names(root, "trainval")
    devkit = devkits.get("VOC2010")
    if devkit is None:
        yield Count("context", root, "(no VOC2010)", len(masks), len(masks), 0, len(masks), 0, None)
        return
    images = _names(devkit, "JPEGImages")
    for name in ("train", "val"):
        ids = voc.read_split(devkit, f"Main/{name}")
        absent, published = len(ids) - _having(ids, images), published_images([f"context/{name}"])
        yield Count("context", root, name, len(ids), absent, 0, _having(ids, masks), 0, published)
