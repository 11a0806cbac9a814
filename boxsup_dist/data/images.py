"""Image files as bytes: decoding photographs to RGB, and label maps to and from PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# Only these formats are opened. Pillow knows others that start a program (EPS) or look like source code (XBM).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")


def encode_png(label_map: NDArray[np.uint8]) -> bytes:
    """Encode a label map (H, W) as a grey PNG; `decode_png` returns the same integers."""
    buffer = io.BytesIO()
    Image.fromarray(label_map).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """Decode a label map, a PNG of 8 bits: the stored integers (H, W), for a palette PNG the palette indices.

    Raises:
        OSError: If the bytes are damaged or not a PNG; Pillow raises SyntaxError for some damages.
    """
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))


def decode_image(data: bytes, *, turn_by_exif: bool = False) -> NDArray[np.uint8]:
    """Decode an image file of one of IMAGE_FORMATS to RGB (H, W, 3).

    Args:
        data: The file's bytes. Grey, CMYK and palette images are converted; of 16-bit grey the upper 8 bits are kept.
        turn_by_exif: Rotate the image as its EXIF orientation says. Leave it off for images of a records table: their
            annotations refer to the stored orientation.

    Raises:
        OSError: If the bytes are damaged or of another format; Pillow raises SyntaxError for some damages.
    """
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
        image = ImageOps.exif_transpose(opened) if turn_by_exif else opened
        if image.mode.startswith("I"):  # 16-bit grey: convert() would clip everything above 255
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
