"""What the annotations of a data set call its images and classes, kept beside the records: TABLE/input_names.json.

Records name an image SOURCE/PATH and number classes from 1. A tool that wants masks back knows its own ids and file
names. The file decides no row of the table, so the table's fingerprint does not depend on it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from boxsup_dist.errors import TableError
from boxsup_dist.io import storage

_FILE = "input_names.json"


class InputImage(NamedTuple):
    """An image as its annotations name it."""

    id: int | None  # None: the format has no ids
    file_name: str


@dataclass(frozen=True)
class InputNames:
    """Names of a data set's input."""

    images: Mapping[str, InputImage] = field(default_factory=dict)  # by image_id
    category_ids: Mapping[str, int] = field(default_factory=dict)  # by class name; empty: the format has none
    folders: tuple[str, ...] = ()  # URIs of the folders of the images; an image_id is SOURCE/PATH below one of them


def keep_input_names(table_uri: str, names: InputNames) -> None:
    """Write the names beside a records table, unless they are there."""
    content = {
        "category_ids": dict(names.category_ids),
        "folders": list(names.folders),
        "images": {i: list(image) for i, image in names.images.items()},
    }
    uri = storage.join(table_uri, _FILE)
    if not storage.exists(uri) or storage.read_json(uri) != content:
        storage.write_json(uri, content)


def read_input_names(table_uri: str) -> InputNames:
    """Read the names of a records table; empty ones if it was built without.

    Raises:
        TableError: The file is damaged.
    """
    uri = storage.join(table_uri, _FILE)
    if not storage.exists(uri):
        return InputNames()
    content = storage.read_json(uri)
    try:
        images = {str(key): InputImage(*value) for key, value in content["images"].items()}
        category_ids = {str(key): int(value) for key, value in content["category_ids"].items()}
        folders = tuple(map(str, content.get("folders", ())))  # tables of older versions have none
    except (TypeError, KeyError, ValueError, AttributeError):
        expected = "the file that jobs.build_records wrote: delete it and run that command again"
        raise TableError("not the names of a records table's input", file=uri, expected=expected) from None
    return InputNames(images, category_ids, folders)


def join_input_names(parts: Sequence[InputNames]) -> InputNames:
    """The names of several tables together; category ids only where all tables have the same."""
    same = all(part.category_ids == parts[0].category_ids for part in parts)
    images = {image_id: image for part in parts for image_id, image in part.images.items()}
    return InputNames(images, parts[0].category_ids if parts and same else {})


def names_of_files(uris: Iterable[str], inputs: Sequence[InputNames]) -> dict[str, InputImage]:
    """How the input names image files, by their URIs; files that are no image of the input are left out.

    Args:
        uris: Absolute URIs of the files.
        inputs: Names of one or more tables' inputs.
    """
    places: list[tuple[str, dict[str, InputImage]]] = []
    for each in inputs:
        by_path = {image_id.partition("/")[2]: image for image_id, image in each.images.items()}
        places += [(f"{folder}/", by_path) for folder in each.folders]
    found: dict[str, InputImage] = {}
    for uri in uris:
        for folder, by_path in places:
            path = uri.removeprefix(folder)
            # An image_id has the file's ending only where two files differ in nothing else.
            image = by_path.get(path) or by_path.get(posixpath.splitext(path)[0])
            if image is not None:
                found.setdefault(uri, image)
    return found
