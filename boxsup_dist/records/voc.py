"""Reader of PASCAL VOC devkits, in the layout of 2007 and 2012, and of any data set in that layout.

    JPEGImages/ID.jpg             the image, of any colour mode; its bytes go into the record unchanged
    Annotations/ID.xml            the boxes, 1-based with both ends inside: (xmin-1, ymin-1, xmax, ymax) is 0-based and
                                  half-open; they refer to the stored image, not rotated by EXIF; there may be none
    SegmentationClass/ID.png      optional: class ids, 255 is void
    SegmentationClassAug/ID.png   optional: the same from SBD, read if SegmentationClass has no mask of the image
    SegmentationObject/ID.png     optional: object numbers 1, 2, ..., 255 is void; they give the instance masks
    ImageSets/Segmentation/S.txt  image ids of split S; if missing, ImageSets/Main/S.txt

VOC 2007 is read by its lists Main/trainval and Main/test. VOC 2012's Segmentation/test has no annotations: with
`images_only` a record has no boxes and no masks, which is enough for prediction. A root is a path or any fsspec URI.
An image that can't be used raises RecordError; a bad root or list raises InputError.
"""

from __future__ import annotations

import functools
import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from boxsup_dist.data.images import decode_png
from boxsup_dist.data.schema import IGNORE_INDEX, VOC_CLASSES, Record
from boxsup_dist.errors import InputError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.io.typed_json import fingerprint
from boxsup_dist.records.boxes import reaches_outside, refuse_relative
from boxsup_dist.records.files import parse_xml, read_file, read_image, read_mask, refuse_turned
from boxsup_dist.records.instances import find_objects, masks_of_boxes
from boxsup_dist.records.reader import Annotation, ListEntry, Reader, make_record, published_images
from boxsup_dist.records.settings import Outside

MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")
OBJECT_FOLDER = "SegmentationObject"
LIST_FOLDERS = ("Segmentation", "Main")


def open_splits(
    voc_root: str,
    split: str,
    *,
    source: str | None = None,
    images_only: bool = False,
    outside: Outside = "refuse",
) -> Reader:
    """Return the reader of splits of a devkit.

    Args:
        voc_root: Path or URI of the devkit, see `find_root`.
        split: A split, see `read_split`, or several joined by `+`; every row of the table keeps the name of its split.
        source: Name of the data set in the image ids; by default the year folder in lower case (voc2012).
        images_only: Make records without boxes and masks, and ignore all annotations.
        outside: As `read_record`.

    Raises:
        InputError: If the root or a list is bad, or if the splits share images.
    """
    root = find_root(voc_root)
    year = root.rsplit("/", 1)[-1].lower()
    files = {part: _find_list(root, part) for part in split.split("+")}
    entries = [ListEntry(image_id, list_name(part)) for part, file in files.items() for image_id in read_list(file)]
    refuse_shared(entries)
    return Reader(
        source=source or year,
        split=split if "/" not in split else "+".join(map(list_name, files)),
        identity={"ids": fingerprint(entries)}
        | ({"images_only": True} if images_only else {})
        | ({"outside": outside} if outside != "refuse" else {}),
        entries=entries,
        read=functools.partial(_read_entry, root, source or year, images_only, outside),
        published=published_images([f"{year}/{'/'.join(f[:-4].split('/')[-2:])}" for f in files.values()]),
    )


def _read_entry(root: str, source: str, images_only: bool, outside: Outside, entry: ListEntry) -> Record:
    return read_record(root, *entry, source=source, images_only=images_only, outside=outside)


def list_name(split: str) -> str:
    """Return the split name that records get: `trainval` for Main/trainval and for DIR/trainval.txt."""
    return split.rsplit("/", 1)[-1].removesuffix(".txt")


def refuse_shared(entries: Sequence[ListEntry]) -> None:
    """Raise InputError if an image is in two of the splits that are joined."""
    repeated = [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if repeated:
        problem = "the splits share images: join splits that have no image in common"
        raise InputError(problem, field="split", value=repeated[:5], expected="disjoint lists")


def find_root(voc_root: str) -> str:
    """Find the year folder, which holds JPEGImages: `voc_root` itself, or the only year in it.

    `voc_root` may also be VOCdevkit or the folder that holds VOCdevkit.

    Raises:
        InputError: If there is no year folder, or more than one.
    """
    root = storage.absolute(voc_root)
    if storage.exists(storage.join(root, "JPEGImages")):
        return root
    names = storage.list_names(root)
    if "VOCdevkit" in names:
        return find_root(storage.join(root, "VOCdevkit"))
    years = [name for name in names if storage.exists(storage.join(root, name, "JPEGImages"))]
    if len(years) == 1:
        return storage.join(root, years[0])
    raise InputError(
        "several data sets in this folder: name one of them" if years else "not a VOC devkit",
        file=root,
        value=years or None,
        expected="a folder that holds JPEGImages, Annotations and ImageSets, such as VOCdevkit/VOC2012",
    )


def read_split(voc_root: str, split: str) -> list[str]:
    """Read the image ids of a split, in the order of its list.

    Args:
        voc_root: Path or URI of the devkit, see `find_root`.
        split: Name of a list of ImageSets/Segmentation or, if it has none of that name, of ImageSets/Main;
            `Segmentation/NAME` or `Main/NAME` to choose; or the path or URI of a list file that ends in .txt.

    Raises:
        InputError: If there is no such list or the list is bad, see `read_list`.
    """
    return read_list(_find_list(find_root(voc_root), split))


def read_list(file: str) -> list[str]:
    """Read the image ids of a list file: one ID per line, or an ID and a flag, as in the class lists of Main.

    An image with the flag -1 (the class is absent) is left out.

    Raises:
        InputError: If the file is missing, names no image, names one twice, or has a line of another form.
    """
    ids = []
    text = storage.read_bytes(file).decode("utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        image_id, *flag = line.split() or [""]
        if not image_id or flag == ["-1"]:
            continue
        if "/" in image_id or flag not in ([], ["0"], ["1"]):
            raise InputError(
                "not a list of image ids",
                file=file,
                field=f"line {number}",
                value=line,
                expected="ID, or ID and a flag",
            )
        ids.append(storage.safe_name(image_id, file=file, field=f"line {number}"))
    if not ids:
        raise InputError("the list names no image", file=file)
    repeated = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise InputError("the list names an image twice", file=file, value=repeated[:5])
    return ids


def _find_list(root: str, split: str) -> str:
    path = storage.absolute(split)
    if split.endswith(".txt") and storage.exists(path):
        return path
    folder, _, name = split.rpartition("/")
    files = [storage.join(root, "ImageSets", f, f"{name}.txt") for f in LIST_FOLDERS if folder in ("", f)]
    for file in files:
        if storage.exists(file):
            return file
    known = [n[:-4] for n in storage.list_names(storage.join(root, "ImageSets", "Segmentation")) if n.endswith(".txt")]
    raise InputError(
        "no such split",
        file=files[0] if files else path,
        field="split",
        value=split,
        expected=f"a list file or one of {', '.join(known) or '(none found)'}",
    )


def read_record(
    voc_root: str,
    image_id: str,
    split: str,
    classes: Sequence[str] = VOC_CLASSES,
    *,
    source: str = "voc",
    images_only: bool = False,
    outside: Outside = "refuse",
) -> Record:
    """Read and check one image with its boxes and, where the devkit has them, its masks.

    The size comes from the decoded image. The size in the XML is ignored, unless it shows that the boxes are of the
    image as its EXIF orientation turns it.

    Args:
        voc_root: The year folder itself.
        image_id: The image's name in the devkit.
        split: Split name of the record.
        classes: Names of the classes, background first.
        source: Name of the data set; the record's image_id is `source/image_id`.
        images_only: Read no boxes and no masks.
        outside: What to do with a box that reaches more than 1 px beyond the image (less is clipped): "refuse" raises,
            "clip" cuts it off.

    Raises:
        RecordError: If a file is missing, the image does not decode, the XML does not parse, a class is unknown, a box
            has no area or lies outside, all boxes lie within 0..1, or a mask is bad.
    """
    image = _, height, width = read_image(storage.join(voc_root, "JPEGImages", image_id + ".jpg"))
    annotation, mask, instance_masks = Annotation.nothing(), None, None
    if not images_only:
        annotation = read_annotation(voc_root, image_id, image, classes, outside)
        mask = _find_mask(voc_root, MASK_FOLDERS, image_id, height, width, len(classes))
        if mask is not None:
            instance_masks = _read_instances(voc_root, image_id, annotation, decode_png(mask))
    return make_record(image_id, split, source, image, annotation, mask, instance_masks)


def _find_mask(
    voc_root: str, folders: Sequence[str], image_id: str, height: int, width: int, num_classes: int
) -> bytes | None:
    for folder in folders:
        file = storage.join(voc_root, folder, image_id + ".png")
        if storage.exists(file):
            return read_mask(read_file(file), height, width, num_classes, file=file)
    return None


def _read_instances(
    voc_root: str, image_id: str, annotation: Annotation, label_map: NDArray[np.uint8]
) -> list[bytes] | None:
    """Return the mask of each box, see `masks_of_boxes`; None if the devkit has no object map of the image."""
    height, width = label_map.shape
    # An object may have any number except void's.
    data = _find_mask(voc_root, (OBJECT_FOLDER,), image_id, height, width, IGNORE_INDEX)
    if data is None:
        return None
    objects = find_objects(decode_png(data), label_map)
    return masks_of_boxes(objects, annotation.boxes_xyxy, annotation.class_ids)


def read_annotation(
    voc_root: str,
    image_id: str,
    image: tuple[bytes, int, int],
    classes: Sequence[str] = VOC_CLASSES,
    outside: Outside = "refuse",
) -> Annotation:
    """Read the objects of Annotations/ID.xml; there may be none.

    Args:
        voc_root: The year folder itself.
        image_id: The image's name in the devkit.
        image: Bytes, height and width of the image, as `files.read_image` returns them.
        classes: Names of the classes, background first.
        outside: As `read_record`.

    Raises:
        RecordError: As in `read_record`.
    """
    file = storage.join(voc_root, "Annotations", image_id + ".xml")
    _, height, width = image
    root = _parse(read_file(file, "an annotation; or set images_only"), file)
    refuse_turned(image, _number(root.findtext("size/height")), _number(root.findtext("size/width")), file=file)
    corners, boxes, class_ids, difficult, num_clipped = [], [], [], [], 0
    for number, item in enumerate(root.findall("object"), start=1):
        name = (item.findtext("name") or "").strip()
        field = f"object {number}, {name}"
        if name not in classes[1:]:
            expected = ", ".join(classes[1:])
            raise RecordError("unknown class", file=file, field=f"object {number}", value=name, expected=expected)
        try:
            texts = [item.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
            corners.append(_corners(texts, field))
            box, is_clipped = _box(corners[-1], height, width, outside, field=field, texts=texts)
        except RecordError as error:
            raise error.at(file=file) from None
        boxes.append(box)
        num_clipped += is_clipped
        class_ids.append(list(classes).index(name))
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    if any(box != [1, 1, 1, 1] for box in corners):  # of VOC's coordinates these are the first pixel
        try:
            refuse_relative(corners)
        except RecordError as error:
            raise error.at(file=file) from None
    boxes_xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    return Annotation(boxes_xyxy, np.array(class_ids, np.int32), np.array(difficult, bool), num_clipped)


def _parse(data: bytes, file: str) -> ET.Element:
    try:
        root = parse_xml(data)
    except RecordError as error:
        raise error.at(file=file) from None
    if root.tag != "annotation" and root.find("object") is None:  # <annotation> without objects: nothing is there
        raise RecordError("not an annotation of VOC", file=file, value=root.tag, expected="annotation")
    return root


def _number(text: str | None) -> float:
    """Convert a text to a number; NaN if it is none."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _corners(texts: list[str | None], field: str) -> list[float]:
    """Convert xmin, ymin, xmax, ymax, which are 1-based with both ends inside."""
    values = [_number(text) for text in texts]
    if not all(math.isfinite(value) for value in values):
        raise RecordError("the box is not four numbers", field=field, value=texts)
    return values


def _box(
    corners: list[float], height: int, width: int, outside: Outside, *, field: str, texts: list[str | None]
) -> tuple[NDArray[np.float32], bool]:
    """Convert corners to a box (4,) xyxy, 0-based and half-open, clipped to the image; and whether that cut it."""
    box = np.array(corners) - (1, 1, 0, 0)
    points = box.reshape(2, 2)
    is_clipped = reaches_outside(points, height, width, outside, what="the box", field=field, value=texts)
    box = np.clip(box, 0, (width, height, width, height))
    if (box[2:] <= box[:2]).any():
        raise RecordError("the box has no area", field=field, value=texts, expected="xmin <= xmax, ymin <= ymax")
    return box.astype(np.float32), is_clipped
