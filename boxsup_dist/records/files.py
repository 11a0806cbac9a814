"""Reads and checks image files and ground-truth masks, as PNG or MATLAB files, whatever data set they come from."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from boxsup_dist.data.images import IMAGE_FORMATS, decode_image, encode_png
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.errors import MissingFileError, RecordError
from boxsup_dist.io import storage
from boxsup_dist.io.mat_file import read_mat

# What Pillow raises for truncated, damaged and foreign files.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_file(file: str, expected: str | None = None) -> bytes:
    """Whole content of a file; RecordError, with what was expected, if it is missing."""
    try:
        return storage.read_bytes(file)
    except MissingFileError:
        raise RecordError("missing file", file=file, expected=expected) from None


def read_image(file: str) -> tuple[bytes, int, int]:
    """An image file's bytes and the height and width that they decode to; RecordError if missing or damaged."""
    data = read_file(file)
    try:
        height, width = decode_image(data).shape[:2]
    except UNREADABLE as error:
        raise RecordError("the image does not decode", file=file, value=str(error)) from None
    return data, height, width


def read_mask(data: bytes, height: int, width: int, num_classes: int, *, file: object) -> bytes:
    """A mask file's bytes as PNG bytes whose stored values are class ids 0..num_classes-1 or 255 (void).

    Palette and 8-bit grey PNGs are kept byte for byte; deeper grey ones become 8-bit. Raises RecordError if the file
    does not decode, is a colour image, has another size than the image (height, width) or other values.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            image.load()
            mode, is_png, values = image.mode, image.format == "PNG", np.asarray(image)
    except UNREADABLE as error:
        raise RecordError("the mask does not decode", file=file, value=str(error)) from None
    if mode not in ("P", "L", "I", "I;16") or not is_png:
        raise RecordError("the mask has no class indices", file=file, value=mode, expected="a palette or grey PNG")
    if values.shape != (height, width):
        size = f"{values.shape[1]} x {values.shape[0]}"
        raise RecordError("mask and image differ in size", file=file, value=size, expected=f"{width} x {height}")
    found = np.unique(values)
    bad = found[((found >= num_classes) & (found != IGNORE_INDEX)) | (found < 0)]
    if len(bad):
        expected = f"0..{num_classes - 1} or {IGNORE_INDEX}"
        raise RecordError(
            "the mask holds values that are no class", file=file, value=bad[:5].tolist(), expected=expected
        )
    return data if mode in ("P", "L") else encode_png(values.astype(np.uint8))


def read_mat_field(file: str, *names: str) -> Any:
    """What a MATLAB file holds in a variable, or in a field of a variable that is a struct. RecordError if nothing."""
    try:
        value: Any = read_mat(read_file(file))
    except RecordError as error:
        raise error.at(file=file) from None
    for depth, name in enumerate(names, start=1):
        if not isinstance(value, dict) or name not in value:
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            path = ".".join(names[:depth])
            raise RecordError("the MATLAB file lacks a value", file=file, field=path, value=found, expected=path)
        value = value[name]
    return value


def check_map(values: Any, height: int, width: int, largest: int, *, file: str, field: str) -> np.ndarray:
    """A MATLAB matrix as uint16 (height, width) of whole numbers 0..largest; RecordError if it is anything else."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uifb":
        raise RecordError("not a matrix of numbers", file=file, field=field, value=type(values).__name__)
    if values.shape != (height, width):
        found = " x ".join(map(str, values.shape[::-1]))
        expected = f"{width} x {height}, the image's size"
        raise RecordError("the map has another size", file=file, field=field, value=found, expected=expected)
    known = (values >= 0) & (values <= largest) & (values == np.floor(values))
    if not known.all():
        found = np.unique(values[~known])[:5].tolist()
        raise RecordError("values that mean nothing", file=file, field=field, value=found, expected=f"0..{largest}")
    return values.astype(np.uint16)
