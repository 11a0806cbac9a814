"""Reading and checking the files of any data set: images, and ground-truth masks as PNG or MATLAB files.

A file that can't be used raises RecordError, which names the file.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from boxsup_dist.data.images import (
    IMAGE_FORMATS,
    MissingExtraError,
    check_size,
    decode_image,
    encode_png,
    image_errors,
    is_turned,
    open_file,
)
from boxsup_dist.data.palette import class_ids_of_colours
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.errors import MissingFileError, RecordError, UnreadableFileError
from boxsup_dist.io import storage
from boxsup_dist.io.mat_file import read_mat
from boxsup_dist.io.mat_values import Struct


def read_file(file: str, expected: str | None = None) -> bytes:
    """Read a whole file.

    Raises:
        RecordError: If the file is missing (its text says what was `expected` there) or cannot be read.
    """
    try:
        return storage.read_bytes(file)
    except MissingFileError:
        raise RecordError("missing file", file=file, expected=expected) from None
    except UnreadableFileError as error:
        raise error.at(kind=RecordError) from None


def parse_xml(data: bytes) -> ET.Element:
    """The root of an XML file.

    Raises:
        RecordError: It is no XML.
    """
    try:
        return ET.fromstring(data)
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two: encodings that Python does not know
        raise RecordError("the annotation is not XML", value=str(error), expected="a whole XML file") from None


def read_image(file: str) -> tuple[bytes, int, int]:
    """Read an image file and decode it once, as a check.

    Returns:
        The unchanged bytes of the file, and the height and width of the decoded image.

    Raises:
        RecordError: If the file is missing or does not decode.
    """
    data = read_file(file)
    try:
        height, width = decode_image(data).shape[:2]
    except UnidentifiedImageError:
        expected = f"an image: {', '.join(IMAGE_FORMATS)}"
        raise RecordError("the image does not decode", file=file, value=data[:16], expected=expected) from None
    except MissingExtraError as error:
        raise RecordError(str(error), file=file) from None
    except OSError as error:
        raise RecordError("the image does not decode", file=file, value=str(error)) from None
    return data, height, width


def refuse_turned(image: tuple[bytes, int, int], stated_height: object, stated_width: object, *, file: object) -> None:
    """Check that an annotation is not of the image as its EXIF orientation turns it, because records are not turned.

    Args:
        image: Bytes, height and width of the image, as `read_image` returns them.
        stated_height: Height that the annotation states.
        stated_width: Width that the annotation states.
        file: Name of the image file, for the error.

    Raises:
        RecordError: If the annotation states the turned size.
    """
    data, height, width = image
    if height != width and (stated_height, stated_width) == (width, height) and is_turned(data):
        raise RecordError(
            "the annotation is of the image as its EXIF orientation turns it, but boxes refer to the stored image",
            file=file,
            value=f"{width} x {height}",
            expected=f"{height} x {width}: turn the image itself, for instance by exiftran -ai or mogrify -auto-orient",
        )


def read_mask(data: bytes, height: int, width: int, num_classes: int, *, file: object) -> bytes:
    """Check a mask file, and return it as an 8-bit PNG of class ids 0..num_classes-1 and 255 (void).

    The values are class ids (palette or grey) or VOC's colours (RGB).

    Args:
        data: Bytes of the mask file.
        height: Height of the image that the mask belongs to, in pixels.
        width: Width of the image, in pixels.
        num_classes: C, background included.
        file: Name of the mask file, for the error.

    Returns:
        The same bytes if the file is a palette or 8-bit grey PNG; a 16-bit grey or an RGB PNG is encoded again.

    Raises:
        RecordError: If the file does not decode, is no such PNG, has another size, other values or colours, or only the
            values 0 and 255, which mark an object in other data sets and would be background and void here.
    """
    try:
        with image_errors(), open_file(data) as image:
            check_size(image)
            mode, is_png, values = image.mode, image.format == "PNG", np.asarray(image)
    except OSError as error:
        raise RecordError("the mask does not decode", file=file, value=str(error)) from None
    is_colour = mode in ("RGB", "RGBA")
    if not (is_colour or mode in ("P", "L", "I", "I;16")) or not is_png:
        raise _no_class_indices(mode, file)
    if values.shape[:2] != (height, width):
        size = f"{values.shape[1]} x {values.shape[0]}"
        expected = f"{width} x {height}, the image's size"
        raise RecordError("mask and image differ in size", file=file, value=size, expected=expected)
    if is_colour:
        ids = class_ids_of_colours(values[..., :3])
        if (ids < 0).any():
            colour = values[ids < 0][0, :3].tolist()
            raise _no_class_indices(f"{mode} with the colour {colour}", file)
        values = ids
    found = np.unique(values)
    bad = found[((found >= num_classes) & (found != IGNORE_INDEX)) | (found < 0)]
    if len(bad):
        expected = f"0..{num_classes - 1} or {IGNORE_INDEX}"
        raise RecordError(
            "the mask holds values that are no class id", file=file, value=bad[:5].tolist(), expected=expected
        )
    if found.tolist() == [BACKGROUND, IGNORE_INDEX]:
        raise RecordError(
            "the mask holds 0 and 255 only, which are background and void: write the object's class id instead of 255",
            file=file,
            value=found.tolist(),
            expected=f"0..{num_classes - 1}, and {IGNORE_INDEX} for void",
        )
    return data if mode in ("P", "L") else encode_png(values.astype(np.uint8))


def _no_class_indices(found: str, file: object) -> RecordError:
    expected = "a palette or grey PNG of class ids, or a PNG in VOC's colours"
    return RecordError("the mask has no class indices", file=file, value=found, expected=expected)


def read_mat_field(file: str, *names: str) -> Any:
    """Read one value of a MATLAB file.

    Args:
        file: Path or URI of the file.
        names: Name of a variable; if the variable is a struct, followed by the name of a field.

    Raises:
        RecordError: If the file is missing, is no MATLAB file or has no such value.
    """
    try:
        value: Any = read_mat(read_file(file))
        for depth, name in enumerate(names, start=1):
            if not isinstance(value, Struct) or name not in value:
                found = sorted(value) if isinstance(value, Struct) else type(value).__name__
                path = ".".join(names[:depth])
                raise RecordError("the MATLAB file lacks a value", field=path, value=found, expected=path)
            value = value[name]
    except RecordError as error:
        raise error.at(file=file) from None
    return value


def check_map(values: Any, height: int, width: int, largest: int, *, file: str, field: str) -> NDArray[np.uint16]:
    """Check that a value of a MATLAB file is a matrix (height, width) of whole numbers 0..largest, and convert it.

    Args:
        values: The value, of any type.
        height: Height of the image that the map belongs to, in pixels.
        width: Width of the image, in pixels.
        largest: Largest allowed number, below 2**16.
        file: Name of the MATLAB file, for the error.
        field: Name of the value in the file, for the error.

    Raises:
        RecordError: If it is anything else.
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uifb":
        raise RecordError("not a matrix of numbers", file=file, field=field, value=type(values).__name__)
    if values.shape != (height, width):
        found = " x ".join(map(str, values.shape[::-1]))
        expected = f"{width} x {height}, the image's size"
        raise RecordError("the map has another size", file=file, field=field, value=found, expected=expected)
    known = (values >= 0) & (values <= largest) & (values == np.floor(values))
    if not known.all():
        found = np.unique(values[~known])[:5].tolist()
        raise RecordError(
            "the map holds unknown values", file=file, field=field, value=found, expected=f"whole numbers 0..{largest}"
        )
    return values.astype(np.uint16)
