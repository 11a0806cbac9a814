"""YOLO's text files: one per image, a line per object, with the class names in data.yaml, classes.txt or obj.names.

A line is `class cx cy width height`, with a score or without, or `class x y x y ...` for a polygon; all numbers are
shares of the image. An image without a text file has no object: that is YOLO's own rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import yaml

from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.records.own.annotations import (
    AnnotatedImage,
    Annotations,
    Box,
    corners_around,
    decode_text,
    number,
    read_each,
)

NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
_NOT_LABELS = ("train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt", "requirements.txt", *NAME_FILES)
_FOLDERS = ("images", "labels", "obj_train_data")  # what images and text files do not share of their paths


def find_names_file(folder: str) -> str | None:
    """The file of class names in a folder: a YAML file with `names`, else one of NAME_FILES; None: there is none."""
    found = storage.list_names(folder)
    for name in found:
        if name.endswith((".yaml", ".yml")) and b"names" in storage.read_bytes(storage.join(folder, name)):
            return storage.join(folder, name)
    return next((storage.join(folder, name) for name in NAME_FILES if name in found), None)


def read(uri: str) -> Annotations:
    """Read a data.yaml or another file of class names with the text files below its folder; or such a folder.

    A folder `labels` may lie beside the file of class names.

    Raises:
        InputError: There is no file of class names or no text file, or the file of class names is not one.
        RecordError: A line has a class that the class names lack.
    """
    if storage.is_folder(uri):
        folder, names_file = uri, find_names_file(uri) or find_names_file(uri.rpartition("/")[0])
    else:
        folder, names_file = uri.rpartition("/")[0], uri
    if names_file is None:
        expected = f"data.yaml with names, or one of {', '.join(NAME_FILES)}, one name per line"
        raise InputError("YOLO's text files without their class names", file=folder, expected=expected)
    names = read_names(names_file)
    texts = [
        n for n in storage.find_files(folder) if n.endswith(".txt") and n.rsplit("/", 1)[-1].lower() not in _NOT_LABELS
    ]
    if not texts:
        expected = "a text file per image; give the folder that holds them"
        raise InputError("no text file of YOLO in this folder", file=folder, value="no .txt", expected=expected)
    images = read_each(folder, texts, partial(read_image, names=names, names_file=names_file))
    return Annotations("yolo", images, tuple(names), others_are_empty=True)


def read_names(file: str) -> list[str]:
    """Class names by their number.

    Raises:
        InputError: The file is no list of names.
    """
    text = decode_text(storage.read_bytes(file), file)
    if not file.endswith((".yaml", ".yml")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError("not a YAML file", file=file, value=" ".join(str(error).split())) from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        expected = "a list of class names, or numbers from 0 with their names"
        raise InputError("no class names", file=file, field="names", value=names, expected=expected)
    if content.get("nc", len(names)) != len(names):
        expected = f"{content['nc']} names, as nc says"
        raise InputError("nc is not the number of names", file=file, field="names", value=len(names), expected=expected)
    return [str(name).strip() for name in names]


def read_image(data: bytes, file: str, name: str, *, names: Sequence[str], names_file: str) -> AnnotatedImage:
    """Read one text file.

    Raises:
        RecordError: A line is not an object.
        InputError: A class is not one of `names`: the list of names is that of other text files.
    """
    boxes = []
    for place, line in enumerate(decode_text(data, file).splitlines(), start=1):
        if not line.strip():
            continue
        first, *texts = line.split()
        where = f"line {place}"
        class_id = number(first, where)
        if class_id not in range(len(names)):
            raise InputError(
                f"a class that {names_file} lacks: its list of names is too short, or of other files",
                file=file,
                field=where,
                value=first,
                expected=f"0 to {len(names) - 1}, for {len(names)} names",
            )
        boxes.append(_box(names[int(class_id)], [number(text, where) for text in texts], where, line))
    return AnnotatedImage(_without_folders(name), file, boxes, is_relative=True)


def _box(name: str, values: list[float], where: str, line: str) -> Box:
    if len(values) in (4, 5):  # the fifth is the score of a prediction
        x, y, width, height = values[:4]
        corners, mask = (x - width / 2, y - height / 2, x + width / 2, y + height / 2), None
    elif len(values) >= 6 and len(values) % 2 == 0:
        corners, mask = corners_around(zip(values[::2], values[1::2], strict=True)), [values]
    else:
        expected = "class cx cy width height, or class x y x y x y ..."
        raise RecordError("not an object of YOLO", field=where, value=line, expected=expected)
    if max(corners) > 2:
        expected = "shares of the image's width and height, 0 to 1"
        raise RecordError("the numbers are pixels, not shares of the image", field=where, value=line, expected=expected)
    return Box(name, corners, where, mask=mask)


def _without_folders(path: str) -> str:
    return str(PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in _FOLDERS)))
