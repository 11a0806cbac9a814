"""Finds out the format of annotations, and reads them.

What a file holds decides, not its ending: a JSON file may be of four tools, and some tools write XML into .txt.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, NoReturn

from boxsup_dist.errors import InputError
from boxsup_dist.io import storage
from boxsup_dist.records.own import coco_file, csv_file, cvat, label_studio, labelme, via, voc, yolo
from boxsup_dist.records.own.annotations import Annotations
from boxsup_dist.records.settings import BoxFormat

READERS: dict[BoxFormat, Callable[[str], Annotations]] = {
    "coco": coco_file.read,
    "voc": voc.read,
    "yolo": yolo.read,
    "csv": csv_file.read,
    "cvat": cvat.read,
    "labelme": labelme.read,
    "label_studio": label_studio.read,
    "open_images": csv_file.read_open_images,
    "via": via.read,
}
_KNOWN = "annotations of COCO, Pascal VOC, YOLO, CVAT for images 1.1, LabelMe, Label Studio, Open Images or VIA, or CSV"
_OTHER_FILES = {
    b"PK": "its content: unpack an archive, save a spreadsheet as CSV",
    b"\xff\xd8": "annotations, not an image",
    b"\x89PNG": "annotations, not an image",
    b"version https://git-lfs": "the file itself, not a pointer to it: run git lfs pull",
}
_NO_ANNOTATIONS = ("classes.txt", "class-descriptions", "readme")


def read_annotations(uri: str, box_format: BoxFormat | None = None) -> Annotations:
    """Read annotations.

    Args:
        uri: A file, or a folder of files.
        box_format: Their format; None finds it out.

    Raises:
        InputError: The format is not known, the files are not of it, or they have no box.
    """
    uri = storage.absolute(uri)
    if not storage.exists(uri) and not storage.is_folder(uri):
        raise InputError("no such file or folder", file=uri, field="boxes", expected=_KNOWN)
    if box_format is None:
        box_format, uri = find_format(uri)
    found = READERS[box_format](uri)
    if not any(image.boxes for image in found.images):
        _refuse_boxless(found, uri)
    return found


def _refuse_boxless(found: Annotations, uri: str) -> NoReturn:
    """Raise InputError with the first reason why annotations have no box."""
    problem = next((image.problem for image in found.images if image.problem is not None), None)
    if problem is not None:
        raise problem.at(problem=f"no box in these annotations ({found.format}): {problem.problem}", kind=InputError)
    left_out = next((sentence for image in found.images for sentence in image.left_out), None)
    expected = "at least one box: give the file or folder of the annotations"
    raise InputError(f"no box in these annotations ({found.format})", file=uri, value=left_out, expected=expected)


def find_format(uri: str) -> tuple[BoxFormat, str]:
    """The format of a file or folder, and what to give to the format's reader.

    Raises:
        InputError: It is none that is known, or the folder has annotations of several formats.
    """
    if not storage.is_folder(uri):
        return _format_of_file(uri), uri
    files = storage.find_files(uri)
    endings = {"xml": [], "json": [], "csv": [], "txt": []}  # type: dict[str, list[str]]
    for name in files:
        ending = name.lower().rpartition(".")[2]
        if ending in endings and not any(word in name.lower() for word in _NO_ANNOTATIONS):
            endings[ending].append(name)
    if yolo.find_names_file(uri) is not None and endings["txt"]:
        return "yolo", uri
    found = {ending: names for ending, names in endings.items() if names and ending != "txt"}
    if not found and endings["txt"]:
        return "yolo", uri
    if not found:
        raise InputError("no annotations in this folder", file=uri, field="boxes", value=files[:3], expected=_KNOWN)
    if len(found) > 1:
        names = [each[0] for each in found.values()]
        raise InputError(
            "annotations of several formats in this folder", file=uri, value=names, expected="one: name its file"
        )
    (names,) = found.values()
    first = storage.join(uri, names[0])
    box_format = _format_of_file(first)
    if box_format in ("voc", "labelme"):
        return box_format, uri
    if len(names) > 1:
        raise InputError("several annotation files in this folder", file=uri, value=names[:5], expected="one: name it")
    return box_format, first


def _format_of_file(uri: str) -> BoxFormat:
    data = storage.read_bytes(uri)
    start = data[:4096].removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        start = start.decode("utf-16", errors="ignore").encode()
    if not start:
        raise InputError("the file is empty", file=uri, field="boxes", expected=_KNOWN)
    if start.startswith(b"<"):
        return "cvat" if b"<annotations" in start else "voc"
    if start[:1] in (b"{", b"["):
        return _format_of_json(storage.parse_json(data, file=uri), uri)
    if uri.lower().endswith((".yaml", ".yml", *yolo.NAME_FILES)):
        return "yolo"
    if uri.lower().endswith((".csv", ".tsv", ".txt")):
        return "open_images" if csv_file.is_open_images(uri) else "csv"
    hint = next((hint for signature, hint in _OTHER_FILES.items() if start.startswith(signature)), _KNOWN)
    raise InputError("not a file of annotations", file=uri, field="boxes", value=start[:20], expected=hint)


def _format_of_json(content: Any, uri: str) -> BoxFormat:
    if isinstance(content, dict):
        if "annotations" in content and "images" in content:
            return "coco"
        if "shapes" in content:
            return "labelme"
        if "_via_img_metadata" in content or any(isinstance(v, dict) and "regions" in v for v in content.values()):
            return "via"
        found = sorted(content)[:8]
    else:
        first = content[0] if content else None
        found = sorted(first)[:8] if isinstance(first, dict) else [str(first)]
        if isinstance(first, dict) and {"image_id", "category_id"} <= set(first):
            problem = "COCO results name neither files nor classes: give the file instances_*.json"
            raise InputError(problem, file=uri, field="boxes", value=found, expected="images, annotations, categories")
        if isinstance(first, dict) and ("data" in first or "image" in first):
            return "label_studio"
    raise InputError("a JSON file of no known tool", file=uri, field="boxes", value=found, expected=_KNOWN)
