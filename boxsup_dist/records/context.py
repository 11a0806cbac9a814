"""Reader of PASCAL-Context: whole scenes of VOC 2010 labelled with 459 names, of which 59 are classes.

    CONTEXT/trainval/ID.mat        LabelMap (H, W), values 1..459
    CONTEXT/labels.txt             the names, one a line: "1: accordion"
    VOC2010/JPEGImages/ID.jpg      the images
    VOC2010/ImageSets/Main/S.txt   train (4,998) and val (5,105)

As in the usual protocol the 59 most frequent names are classes 1..59, VOC's 20 first, and all others are background,
class 0. Records have no boxes and no instance masks: the data set marks regions of stuff as well as objects and tells
no two objects apart, so a box made of it would hold whatever is connected. It is there to train and measure with masks.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from boxsup_dist.data.images import encode_png
from boxsup_dist.data.schema import BACKGROUND, VOC_CLASSES, Record
from boxsup_dist.data.tables import fingerprint
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.records import voc
from boxsup_dist.records.files import check_map, read_image, read_mat_field
from boxsup_dist.records.reader import Annotation, ListEntry, Reader, make_record, published_images

CONTEXT_CLASSES = (
    *VOC_CLASSES, "bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "clothes", "computer", "cup", "door",
    "fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain",
    "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky", "snow", "bedcloth", "track", "tree",
    "truck", "wall", "water", "window", "wood",
)  # fmt: skip
# What labels.txt calls classes that the list of 59 names otherwise.
_LABEL_NAMES = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
_LINE = re.compile(r"\s*(\d+)\s*:\s*(\S.*)")


def open_splits(context_root: str, voc_root: str, split: str, *, source: str = "context") -> Reader:
    """Reader of `train` or `val` of VOC 2010's ImageSets/Main, a list file, or several of them joined by `+`.

    Raises InputError for a bad root, list or labels.txt, or if the splits share images.
    """
    devkit, folder = voc.find_root(voc_root), find_maps(context_root)
    entries = []
    for part in split.split("+"):
        in_main = part if "/" in part or part.endswith(".txt") else f"Main/{part}"
        entries += [ListEntry(image_id, voc.list_name(part)) for image_id in voc.read_split(devkit, in_main)]
    voc.refuse_shared(entries)
    class_of = read_labels(_find_labels(context_root))
    return Reader(
        source=source,
        split="+".join(map(voc.list_name, split.split("+"))),
        identity={"ids": fingerprint(entries), "labels": fingerprint(class_of.tolist())},
        entries=entries,
        read=functools.partial(_read_entry, folder, devkit, class_of, source),
        classes=CONTEXT_CLASSES,
        published=published_images([f"context/{voc.list_name(part)}" for part in split.split("+")]),
    )


def find_maps(context_root: str) -> str:
    """The folder of the .mat files: `trainval` in the root, or the root itself."""
    root = storage.absolute(context_root)
    folder = storage.join(root, "trainval")
    if storage.exists(folder):
        return folder
    if any(name.endswith(".mat") for name in storage.list_names(root)):
        return root
    raise InputError("not the data set PASCAL-Context", file=root, expected="a folder that holds trainval/ID.mat")


def _find_labels(context_root: str) -> str:
    root = storage.absolute(context_root)
    files = [storage.join(root, *parts, "labels.txt") for parts in ((), ("trainval",))]
    return next((file for file in files if storage.exists(file)), files[0])


def read_labels(file: str) -> np.ndarray:
    """Class id of every number of labels.txt, uint8 (largest number + 1,): 0 for names outside the 59, and for 0.

    Blanks in names don't count. Raises InputError: file absent, a line of another form, a number twice, a class absent.
    """
    numbers: dict[str, int] = {}
    for count, line in enumerate(storage.read_bytes(file).decode("utf-8-sig", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None or int(match[1]) in numbers.values() or not 1 <= int(match[1]) < 2**16:
            expected = "NUMBER: NAME, each number once"
            raise InputError("not a list of labels", file=file, field=f"line {count}", value=line, expected=expected)
        numbers["".join(match[2].split())] = int(match[1])
    wanted = {name: _LABEL_NAMES.get(name, name) for name in CONTEXT_CLASSES[1:]}
    absent = [label for name, label in wanted.items() if label not in numbers and name not in numbers]
    if absent:
        raise InputError("the list lacks names of classes", file=file, value=absent[:5], expected="the 459 names")
    class_of = np.full(max(numbers.values()) + 1, BACKGROUND, np.uint8)
    for class_id, (name, label) in enumerate(wanted.items(), start=1):
        class_of[numbers[label] if label in numbers else numbers[name]] = class_id
    return class_of


def _read_entry(folder: str, devkit: str, class_of: np.ndarray, source: str, entry: ListEntry) -> Record:
    return read_record(folder, devkit, *entry, class_of, source=source)


def read_record(
    folder: str, devkit: str, image_id: str, split: str, class_of: np.ndarray, *, source: str = "context"
) -> Record:
    """One image of the devkit with its label map, and without boxes.

    `class_of` is that of read_labels. Raises RecordError: file absent or damaged, a map of another size than the image
    or with a number that labels.txt does not have.
    """
    image = _, height, width = read_image(storage.join(devkit, "JPEGImages", image_id + ".jpg"))
    file = storage.join(folder, image_id + ".mat")
    values = read_mat_field(file, "LabelMap")
    numbers = check_map(values, height, width, len(class_of) - 1, file=file, field="LabelMap")
    label_map = encode_png(class_of[numbers])
    return make_record(image_id, split, source, image, Annotation.nothing(), label_map, None)
