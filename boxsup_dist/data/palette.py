"""The VOC colour map: how label maps are shown, and the palette of the mask PNGs in a VOC devkit."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def voc_palette() -> np.ndarray:
    """uint8 (256, 3): the devkit's colour of every class id (its VOCcolormap); 255, the void, is (224, 224, 192).

    The bits of an id are dealt to red, green, blue in turn, the lowest ones to the highest colour bits.
    """
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            source = 3 * bit + channel
            if source < 8:
                colours[:, channel] |= (((ids >> source) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def encode_palette_png(label_map: np.ndarray) -> bytes:
    """Label map uint8 (H, W) as the bytes of a palette PNG in VOC's colours; regions.decode_png gives it back."""
    image = Image.fromarray(label_map)
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
