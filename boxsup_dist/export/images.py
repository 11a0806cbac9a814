"""The images to predict: found in a folder, by a pattern, in a list or in a records table, and read one at a time.

An image's name is also the name of its outputs. For a file it is the path below the common folder, without the ending
of an image file; other endings stay, so that the name of a.txt differs from that of a.jpg. For a row of a records table
it is the image_id.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from boxsup_dist.data.images import IMAGE_ENDINGS, IMAGE_FORMATS, MissingExtraError, decode_image, open_file
from boxsup_dist.data.tables import MANIFEST, RowGroup, Table, open_table
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage

IMAGES_PER_UNIT = 4


class Item(NamedTuple):
    """One image to predict."""

    name: str  # name of its outputs, a relative path without ending
    uri: str  # its file, or its records table
    where: RowGroup | None = None  # its row group in the records table; None for a file
    row: int = 0  # its row in the row group

    @property
    def ending(self) -> str:
        """What the name of a file has after `name`, such as ".jpg"."""
        ending = posixpath.splitext(self.uri)[1]
        return ending if ending.lower() in IMAGE_ENDINGS else ""


@dataclass(frozen=True)
class Images:
    """The images of one call; only their places are known, none is read yet."""

    items: list[Item]
    identity: dict[str, Any]  # JSON values that differ for other images of the same names
    records: Table | None = None

    def units(self, skipped: Callable[[Item], bool] = lambda item: False) -> list[list[Item]]:
        """Units of work without the skipped images: IMAGES_PER_UNIT files each, or the rows of one row group."""
        units: list[list[Item]] = []
        for item in self.items:
            if skipped(item):
                continue
            last = units[-1] if units else []
            if last and (item.where == last[0].where if item.where else len(last) < IMAGES_PER_UNIT):
                last.append(item)
            else:
                units.append([item])
        return units


def find_images(uri: str, out: str) -> Images:
    """Find images without reading them; whether a file is an image shows when it is read.

    Args:
        uri: A records table, a folder (with its subfolders), a pattern, an image, or a text file with one path per line
            (a relative path starts at the folder of the text file).
        out: Folder of the outputs; files below it, and hidden files, are skipped.

    Raises:
        InputError: No file is found, two images have the same name, or a name would leave the folder of the outputs.
    """
    uri, out = storage.absolute(uri), storage.absolute(out)
    if storage.exists(storage.join(uri, MANIFEST)):
        return _of_records(open_table(uri, "records"))
    if storage.is_folder(uri):
        root, uris = uri, _seen([storage.join(uri, path) for path in storage.find_files(uri)], uri, out)
    elif storage.exists(uri):
        root, uris = _of_file(uri)
    elif any(character in uri for character in storage.WILDCARDS):
        root = storage.fixed_part(uri)
        uris = _seen(storage.glob_files(uri), root, out)
    else:
        raise InputError("no such file or folder", file=uri, field="images")
    if not uris:
        raise InputError("no image found", file=uri, field="images", expected="at least one file that is not hidden")
    names = {uri: _name(posixpath.relpath(uri, root)) for uri in sorted(set(uris))}
    items = [Item(storage.safe_name(name, file=uri, field="images"), uri) for uri, name in names.items()]
    check_distinct(items, lambda item: item.name, "would write the same output")
    _check_folders(items)
    return Images(items, {"root": root})


def read_image(data: bytes, *, turn_by_exif: bool, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an image file.

    Args:
        data: Bytes of the file.
        turn_by_exif: Rotate the image by its EXIF orientation.
        max_pixels: Refuse a larger image before it is decoded.

    Returns:
        RGB (H, W, 3).

    Raises:
        RecordError: The bytes are not an image, the image is damaged, or it is larger than max_pixels.
    """
    try:
        with open_file(data) as header:
            width, height = header.size
        if width * height <= max_pixels:
            return decode_image(data, turn_by_exif=turn_by_exif, max_pixels=max_pixels)
    except UnidentifiedImageError:
        raise RecordError("not an image", value=bytes(data[:16]), expected=", ".join(IMAGE_FORMATS)) from None
    except MissingExtraError as error:
        raise RecordError(str(error)) from None
    except Exception as error:  # each format's decoder raises errors of its own
        raise RecordError(f"the image is damaged: {type(error).__name__}: {error}") from None
    raise RecordError(
        "the image is larger than allowed", value=f"{width} x {height}", expected=f"<= {max_pixels} pixels"
    )


def ending_of(data: bytes) -> str:
    """Usual ending of an image file by its bytes, such as ".jpg"; "" if they are no image."""
    try:
        with open_file(data) as header:
            return {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2", "HEIF": ".heic"}.get(
                str(header.format), f".{header.format}".lower()
            )
    except Exception:  # each format's decoder raises errors of its own
        return ""


def check_distinct(items: Sequence[Item], key: Callable[[Item], Hashable], problem: str) -> None:
    """Check that no two images have the same key.

    Args:
        items: The images.
        key: What must differ.
        problem: What two images with the same key would do, for the message: "would write the same output".

    Raises:
        InputError: Two images have the same key; names both.
    """
    first: dict[Hashable, Item] = {}
    for item in items:
        other = first.setdefault(key(item), item)
        if other is not item:
            raise InputError(
                f"two images {problem}",
                field="images",
                value=[storage.join(i.uri, i.name) if i.where else i.uri for i in (other, item)],
                expected="names that differ in more than the ending: list the images that you want in a text file",
            )


def _check_folders(items: Sequence[Item]) -> None:
    """InputError if an image is in a folder a.png beside an image a.jpg, whose output is the file a.png."""
    files = {f"{item.name}.png": item.uri for item in items}
    for item in items:
        for parent in PurePosixPath(item.name).parents:
            if str(parent) in files:
                raise InputError(
                    "an image's output would have the same name as the folder of another image",
                    field="images",
                    value=[files[str(parent)], item.uri],
                )


def _of_records(table: Table) -> Images:
    items = []
    for where in table.row_groups():
        for row, image_id in enumerate(table.read(where, ("image_id",)).column("image_id").to_pylist()):
            name = storage.safe_name(image_id, file=table.uri, field="image_id")
            items.append(Item(name, table.uri, where, row))
    check_distinct(items, lambda item: item.name, "would write the same output")
    return Images(items, {"records": table.fingerprint}, table)


def _of_file(uri: str) -> tuple[str, list[str]]:
    """Common folder and URIs of the images that a file names: itself, or what a text file lists."""
    folder = posixpath.dirname(uri)
    if uri.lower().endswith(IMAGE_ENDINGS):
        return folder, [uri]
    try:
        lines = [line.strip() for line in storage.read_bytes(uri).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise InputError(
            "the file is neither an image by its ending nor a text file",
            file=uri,
            field="images",
            expected=", ".join(IMAGE_ENDINGS),
        ) from None
    uris = []
    for line in filter(None, lines):
        is_whole = "://" in line or line.startswith(("/", "~"))
        uris.append(storage.absolute(line if is_whole else storage.join(folder, line)))
    schemes = {uri.partition("://")[0] if "://" in uri else "" for uri in uris}
    if len(schemes) > 1:
        raise InputError(
            "the list mixes file systems", file=uri, field="images", value=sorted(schemes), expected="one file system"
        )
    return _common_folder(uris) if uris else folder, uris


def _common_folder(uris: Sequence[str]) -> str:
    """The deepest folder that holds all URIs. posixpath.commonpath would turn the two slashes of s3:// into one."""
    folders = [posixpath.dirname(uri).split("/") for uri in uris]
    shared = 0
    while all(len(parts) > shared for parts in folders) and len({parts[shared] for parts in folders}) == 1:
        shared += 1
    return "/".join(folders[0][:shared]) or "/"


def _seen(uris: Sequence[str], root: str, out: str) -> list[str]:
    """The URIs that are neither hidden nor below `out`."""
    shown = [uri for uri in uris if not any(part.startswith(".") for part in posixpath.relpath(uri, root).split("/"))]
    return [uri for uri in shown if not uri.startswith(out + "/")]


def _name(path: str) -> str:
    stem, ending = posixpath.splitext(path)
    return stem if ending.lower() in IMAGE_ENDINGS else path
