"""Reader of PASCAL-Context: whole scenes of VOC 2010, labelled with 459 names of which 59 are classes.

    CONTEXT/trainval/ID.mat        LabelMap (H, W), values 1..459
    CONTEXT/labels.txt             the names, one per line: "1: accordion"
    VOC2010/JPEGImages/ID.jpg      the images
    VOC2010/ImageSets/Main/S.txt   the lists: train (4,998 images) and val (5,105)

By the usual protocol, classes 1..59 are the 59 most frequent names, VOC's 20 first; all other names are background,
class 0. Records have masks but no boxes and no instance masks: the data set labels regions of stuff as well as objects
and does not tell two objects apart, so a box drawn round a region would hold several objects.
"""

from __future__ import annotations

import functools
import re

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.images import encode_png
from boxsup_dist.data.schema import BACKGROUND, VOC_CLASSES, Record
from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import fingerprint
from boxsup_dist.records import voc
from boxsup_dist.records.files import check_map, read_image, read_mat_field
from boxsup_dist.records.reader import Annotation, ListEntry, Reader, make_record, published_images

CONTEXT_CLASSES = (
    *VOC_CLASSES, "bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "clothes", "computer", "cup", "door",
    "fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain",
    "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky", "snow", "bedcloth", "track", "tree",
    "truck", "wall", "water", "window", "wood",
)  # fmt: skip
# Names in labels.txt of the classes that the list of 59 spells differently.
_LABEL_NAMES = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
_LINE = re.compile(r"\s*(\d{1,9})\s*:\s*(\S.*)")


def open_splits(context_root: str, voc_root: str, split: str, *, source: str = "context") -> Reader:
    """Return the reader of splits of PASCAL-Context.

    Args:
        context_root: Path or URI of the data set, see `find_maps`.
        voc_root: Path or URI of the VOC 2010 devkit, which has the images and lists.
        split: `train` or `val`, the lists of ImageSets/Main; a list file; or several of them joined by `+`.
        source: Name of the data set in the image ids.

    Raises:
        InputError: If a root, a list or labels.txt is bad, or if the splits share images.
    """
    devkit, folder = voc.find_root(voc_root), find_maps(context_root)
    entries = []
    for part in split.split("+"):
        in_main = part if "/" in part or part.endswith(".txt") else f"Main/{part}"
        entries += [ListEntry(image_id, voc.list_name(part)) for image_id in voc.read_split(devkit, in_main)]
    voc.refuse_shared(entries)
    class_of = read_label_names(_find_labels(context_root))
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
    """Find the folder of the .mat files: `trainval` in the root, or the root itself.

    Raises:
        InputError: If there is none.
    """
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


def read_label_names(file: str) -> NDArray[np.uint8]:
    """Read labels.txt, and return the class id of each of its numbers.

    Spaces in names are ignored.

    Returns:
        (largest number + 1,): 0 for a name that is none of the 59 classes, and for the number 0.

    Raises:
        InputError: If the file is missing, a line is not of the form NUMBER: NAME, a number occurs twice, or a class is
            missing or occurs twice.
    """
    numbers: dict[str, int] = {}
    seen, repeated = set(), set()
    for count, line in enumerate(storage.read_bytes(file).decode("utf-8-sig", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None or int(match[1]) in seen or not 1 <= int(match[1]) < 2**16:
            expected = "NUMBER: NAME, each number once"
            raise InputError("not a list of names", file=file, field=f"line {count}", value=line, expected=expected)
        name = "".join(match[2].split())
        repeated |= {name} & numbers.keys()
        seen.add(int(match[1]))
        numbers[name] = int(match[1])
    wanted = {name: _LABEL_NAMES.get(name, name) for name in CONTEXT_CLASSES[1:]}
    absent = [label for name, label in wanted.items() if label not in numbers and name not in numbers]
    if absent:
        problem = f"the list lacks {len(absent)} names of classes, such as {', '.join(absent[:5])}"
        raise InputError(problem, file=file, value=f"{len(numbers)} names", expected="the 459 names")
    repeated &= {*wanted, *wanted.values()}
    if repeated:
        raise InputError("the list names a class twice", file=file, value=sorted(repeated), expected="the 459 names")
    class_of = np.full(max(numbers.values()) + 1, BACKGROUND, np.uint8)
    for class_id, (name, label) in enumerate(wanted.items(), start=1):
        class_of[numbers[label] if label in numbers else numbers[name]] = class_id
    return class_of


def _read_entry(folder: str, devkit: str, class_of: NDArray[np.uint8], source: str, entry: ListEntry) -> Record:
    return read_record(folder, devkit, *entry, class_of, source=source)


def read_record(
    folder: str, devkit: str, image_id: str, split: str, class_of: NDArray[np.uint8], *, source: str = "context"
) -> Record:
    """Read one image of the devkit with its ground-truth mask, without boxes.

    Args:
        folder: The folder of the .mat files.
        devkit: VOC 2010's year folder.
        image_id: VOC's name of the image.
        split: Split name of the record.
        class_of: Class id of each number in the maps, from `read_label_names`.
        source: Name of the data set in the record's image_id.

    Raises:
        RecordError: If a file is missing or damaged, or if the map has another size than the image or a number that is
            above those of labels.txt.
    """
    image = _, height, width = read_image(storage.join(devkit, "JPEGImages", image_id + ".jpg"))
    file = storage.join(folder, image_id + ".mat")
    values = read_mat_field(file, "LabelMap")
    numbers = check_map(values, height, width, len(class_of) - 1, file=file, field="LabelMap")
    label_map = encode_png(class_of[numbers])
    return make_record(image_id, split, source, image, Annotation.nothing(), label_map, None)
