"""CSV files: a plain one, a row per box, under whatever names its columns have; and Open Images' box files.

A plain file without a header is `image,x0,y0,x1,y1,class`. A row with an image alone is an image without objects.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.records.own.annotations import AnnotatedImage, Annotations, Box, decode_text, number

_COLUMNS = {
    "image": ("image", "filename", "file", "file_name", "image_path", "path", "image_name", "image_id", "img"),
    "class": ("class", "label", "class_name", "category", "name", "label_name", "category_name"),
    "x0": ("x0", "xmin", "x_min", "left", "xtl", "x1"),
    "y0": ("y0", "ymin", "y_min", "top", "ytl", "y1"),
    "x1": ("x1", "xmax", "x_max", "right", "xbr", "x2"),
    "y1": ("y1", "ymax", "y_max", "bottom", "ybr", "y2"),
    "x": ("x", "bbox_x", "x0", "left", "xmin"),
    "y": ("y", "bbox_y", "y0", "top", "ymin"),
    "w": ("w", "bbox_width", "bbox_w", "box_width", "width"),
    "h": ("h", "bbox_height", "bbox_h", "box_height", "height"),
    "width": ("image_width", "img_width", "width"),
    "height": ("image_height", "img_height", "height"),
}
_NO_HEADER = ("image", "x0", "y0", "x1", "y1", "class")
_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
_OPEN_IMAGES = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")


def is_open_images(uri: str) -> bool:
    """Whether the first line of a file is the header of Open Images' boxes."""
    header = decode_text(storage.read_bytes(uri), uri).splitlines()[:1]
    return bool(header) and set(_OPEN_IMAGES) <= set(header[0].split(","))


def _rows(uri: str) -> list[list[str]]:
    text = decode_text(storage.read_bytes(uri), uri)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        raise InputError("not a CSV file", file=uri, value=str(error), expected="rows of cells") from None
    if delimiter == ",":
        return rows
    # Spreadsheets write semicolons where the comma is the decimal point.
    return [[cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell for cell in row] for row in rows]


def read(uri: str) -> Annotations:
    """Read a plain CSV file.

    Raises:
        InputError: A column is missing, or a row is not a box; names the line.
    """
    rows = _rows(uri)
    first = [cell.strip().lower() for cell in rows[0]] if rows else []
    columns = _columns(first)
    start = 1
    if columns is None and len(first) == len(_NO_HEADER) and _are_numbers(first[1:5]):
        columns, start = {name: place for place, name in enumerate(_NO_HEADER)}, 0
    if columns is None:
        expected = "image, x0, y0, x1, y1, class; or x, y, w, h in place of the corners"
        raise InputError(
            "the first line does not name the columns", file=uri, field="line 1", value=first, expected=expected
        )
    boxes: dict[str, list[Box]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for line, row in enumerate(rows[start:], start=start + 1):
        if not any(cell.strip() for cell in row):
            continue
        try:
            _add(row, columns, f"line {line}", boxes, sizes)
        except RecordError as error:
            raise error.at(file=uri) from None
    return Annotations("csv", [AnnotatedImage(name, uri, found, sizes.get(name)) for name, found in boxes.items()])


def _columns(header: Sequence[str]) -> dict[str, int] | None:
    """The place of each column that a header names; None if one is missing."""

    def places(wanted: Sequence[str]) -> dict[str, int] | None:
        found: dict[str, int] = {}
        for name in wanted:
            free = [header.index(each) for each in _COLUMNS[name] if each in header]
            place = next((each for each in free if each not in found.values()), None)
            if place is None:
                return None
            found[name] = place
        return found

    if len(set(header)) != len(header):
        return None
    for wanted in (("image", "class", "x0", "y0", "x1", "y1"), ("image", "class", "x", "y", "w", "h")):
        found = places(wanted)
        if found is not None:
            with_size = places((*wanted, "width", "height"))
            return with_size or found
    return None


def _are_numbers(cells: Sequence[str]) -> bool:
    try:
        [float(cell or 0) for cell in cells]
    except ValueError:
        return False
    return True


def _add(
    row: Sequence[str],
    columns: Mapping[str, int],
    where: str,
    boxes: dict[str, list[Box]],
    sizes: dict[str, tuple[int, int]],
) -> None:
    """Add the box of one row to those of its image."""
    cells = {name: row[place].strip() if place < len(row) else "" for name, place in columns.items()}
    name = cells.pop("image")
    if not name:
        raise RecordError("the row names no image", field=where, value=",".join(row))
    found = boxes.setdefault(name, [])
    if cells.get("width") and cells.get("height"):
        sizes[name] = (int(number(cells["width"], where)), int(number(cells["height"], where)))
    numbers = [text for key, text in cells.items() if key not in ("class", "width", "height")]
    if not any((*numbers, cells["class"])):
        return  # an image without objects
    x0, y0, x1, y1 = (
        number(text, f"{where}, {key}") for key, text in zip(("x0", "y0", "x1", "y1"), numbers, strict=True)
    )
    if "w" in columns:
        x1, y1 = x0 + x1, y0 + y1
    if x1 < x0 or y1 < y0:
        expected = "x0 <= x1 and y0 <= y1"
        raise RecordError("the corners are in another order", field=where, value=",".join(row), expected=expected)
    found.append(Box(cells["class"], (x0, y0, x1, y1), where))


def read_open_images(uri: str) -> Annotations:
    """Read a box file of Open Images; class names come from a file with `class-descriptions` in its name beside it.

    A row of confidence 0 says that the class is absent. A group of objects (IsGroupOf) is a crowd.

    Raises:
        InputError: A row is not a box; names the line.
    """
    rows = _rows(uri)
    header, names = rows[0], _descriptions(uri)
    boxes: dict[str, list[Box]] = defaultdict(list)
    for line, row in enumerate(rows[1:], start=2):
        where, cells = f"line {line}", dict(zip(header, row, strict=False))
        if not row:
            continue
        try:
            x0, y0, x1, y1 = (number(cells.get(key), f"{where}, {key}") for key in ("XMin", "YMin", "XMax", "YMax"))
        except RecordError as error:
            raise error.at(file=uri) from None
        found, label = boxes[cells["ImageID"]], cells["LabelName"]
        if cells.get("Confidence", "1") in ("0", "0.0"):
            continue
        crowd = cells.get("IsGroupOf", "0") == "1"
        found.append(Box(names.get(label, label), (x0, y0, x1, y1), where, crowd=crowd))
    images = [AnnotatedImage(name, uri, found, is_relative=True) for name, found in boxes.items()]
    return Annotations("open_images", images)


def _descriptions(uri: str) -> dict[str, str]:
    """Names of Open Images' labels such as /m/01g317; empty if no file beside `uri` has them."""
    folder = uri.rpartition("/")[0]
    for name in storage.list_names(folder):
        if "class-descriptions" in name and name.endswith(".csv"):
            return {row[0]: row[1] for row in _rows(storage.join(folder, name)) if len(row) == 2}
    return {}
