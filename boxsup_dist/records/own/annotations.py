"""What every format of annotations is read as: images with boxes and the names of their classes.

To add a format, write a module with a function `read(uri) -> Annotations`, give it a name in `records/settings.py`
(`BoxFormat`), and add it to `formats.py`, which also finds out the format of a file. Test it in
tests/unit/records/own/.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from boxsup_dist.errors import RecordError
from boxsup_dist.io import storage

_THREADS = 16  # files that are read at once: a store answers each after some milliseconds


@dataclass(frozen=True)
class Box:
    """One box as its file has it."""

    class_name: str
    corners: tuple[float, float, float, float]  # x0, y0, x1, y1: pixels, 0-based, half-open; or shares of the image
    where: str  # its place in the file, for messages: "line 3"
    difficult: bool = False
    crowd: bool = False  # a group of objects: no training from its pixels
    mask: Any = None  # polygons [[x, y, x, y, ...], ...] in the unit of `corners`, or COCO's run lengths; None: none


@dataclass(frozen=True)
class AnnotatedImage:
    """One image and its boxes; it may have none."""

    name: str  # as the annotation names it: a path, perhaps of another machine, perhaps without its suffix
    file: str  # the annotation file, for messages
    boxes: Sequence[Box] = ()
    size: tuple[int, int] | None = None  # width and height that the annotation states
    is_relative: bool = False  # `corners` are shares of width and height
    left_out: Sequence[str] = ()  # one sentence per annotation that is no box
    problem: RecordError | None = None  # why the image cannot be used
    other_name: str = ""  # a second name to look for, where the first is that of the annotation file itself
    id: int | None = None  # of the image in a file that lists images by ids, with `name` as that file has it


@dataclass(frozen=True)
class Annotations:
    """All annotations of a file or folder."""

    format: str
    images: Sequence[AnnotatedImage]
    classes: tuple[str, ...] = field(default=())  # in the order of the format's own list; empty: it has none
    others_are_empty: bool = False  # the format means an image without an annotation as one without objects
    category_ids: Mapping[str, int] = field(default_factory=dict)  # by class name; empty: the format has none


def number(value: object, field_name: str) -> float:
    """A finite number from a JSON value or a text.

    Raises:
        RecordError: It is none; names the field.
    """
    try:
        found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise RecordError("not a number", field=field_name, value=value, expected="a number")
    return found


def decode_text(data: bytes, file: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 as Windows' tools write it.

    Raises:
        RecordError: It is neither. To guess would give wrong names of classes.
    """
    try:
        return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        found, expected = data[max(error.start - 10, 0) : error.end], "text in UTF-8: save the file with this encoding"
        raise RecordError("not UTF-8", file=file, field=f"byte {error.start}", value=found, expected=expected) from None


def corners_around(points: Iterable[tuple[float, float]]) -> tuple[float, float, float, float]:
    """The tight box of one or more points (x, y)."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def read_each(
    root: str, names: Sequence[str], read: Callable[[bytes, str, str], AnnotatedImage]
) -> list[AnnotatedImage]:
    """Read one annotation file per image, several at once.

    Args:
        root: The folder.
        names: Paths of the files in it.
        read: Makes the image from the file's bytes, its URI, and the name of the image: the file's without its suffix.

    Returns:
        One image per file, in their order. A file that cannot be used gives an image with a `problem`.
    """

    def read_one(name: str) -> AnnotatedImage:
        uri, image = storage.join(root, name), str(PurePosixPath(name).with_suffix(""))
        try:
            return read(storage.read_bytes(uri), uri, image)
        except RecordError as error:
            found = error.at(file=uri)
            assert isinstance(found, RecordError)
            return AnnotatedImage(image, uri, problem=found)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(read_one, names))


def files_of(uri: str, suffix: str) -> tuple[str, list[str]]:
    """A folder and the paths in it that end in `suffix`; of a single file its folder and its name."""
    if storage.is_folder(uri):
        return uri, [name for name in storage.find_files(uri) if name.lower().endswith(suffix)]
    folder, _, name = uri.rpartition("/")
    return folder, [name]
