"""Images as bytes: PNG label maps, and the image formats that may be opened."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

# Only these are opened: Pillow knows others that start a program (EPS) or look like source code (XBM).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")


def encode_png(array: np.ndarray) -> bytes:
    """uint8 or uint16 (H, W) as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """PNG bytes as the stored integers, (H, W); palette images give their indices."""
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))


def decode_image(data: bytes, *, turn_by_exif: bool = False) -> np.ndarray:
    """An image file's bytes as uint8 RGB (H, W, 3); of 16-bit images the upper 8 bits.

    `turn_by_exif` turns it the way up that its EXIF orientation tells; annotation lies on images as they are stored.
    """
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
        image = ImageOps.exif_transpose(opened) if turn_by_exif else opened
        if image.mode.startswith("I"):  # 16-bit grey: convert() would cut everything above 255 off
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
