"""Colours of the classes: VOC's colour map, which is also the palette of a devkit's mask PNGs, and those of others."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX, VOC_CLASSES


def voc_palette() -> NDArray[np.uint8]:
    """Return the RGB colour of every class id, (256, 3), as the VOC devkit's VOCcolormap.m computes it.

    The lowest three bits of the class id become the highest bit of red, green and blue, the next three bits the second
    highest, and so on. The void, 255, is (224, 224, 192).
    """
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            source = 3 * bit + channel
            if source < 8:
                colours[:, channel] |= (((ids >> source) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def bright_colours(count: int) -> NDArray[np.uint8]:
    """Return RGB colours (count, 3) to draw lines on photos with: bright, and neighbours far apart.

    Hues are a golden ratio of the circle apart, so that any number of first colours is spread over the circle.
    """
    hues = (np.arange(count) * (np.sqrt(5) - 1) / 2) % 1
    strength = np.where(np.arange(count) % 2, 0.55, 0.95)  # of the colour: every second one is paler
    waves = np.abs((hues[:, None] * 6 + (0, 4, 2)) % 6 - 3) - 1
    colours: NDArray[np.uint8] = np.round(255 * (1 - strength[:, None] * (1 - np.clip(waves, 0, 1)))).astype(np.uint8)
    return colours


def class_palette(class_names: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Return the RGB colour in which each class id is shown, (256, 3), in pictures, legends and label map files.

    Args:
        class_names: Names by class id, background first. VOC's 21 classes, or () for unknown ones, have VOC's colours;
            all others have `bright_colours`, as on the contact sheet, on black, with white for ignored pixels.
    """
    if not class_names or tuple(class_names) == VOC_CLASSES:
        return voc_palette()
    colours = bright_colours(256)
    colours[[BACKGROUND, IGNORE_INDEX]] = [[0], [255]]
    return colours


def class_ids_of_colours(colours: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the class id of every pixel of an image (H, W, 3) in VOC's colours, (H, W); -1 for any other colour."""

    def packed(values: NDArray[np.uint8]) -> NDArray[np.int32]:
        return values.astype(np.int32) @ np.array([2**16, 2**8, 1], np.int32)

    known = packed(voc_palette())
    order, found = np.argsort(known), packed(colours)
    ids = order[np.searchsorted(known[order], found).clip(max=len(known) - 1)]
    return np.where(known[ids] == found, ids, -1).astype(np.int16)


def encode_palette_png(label_map: NDArray[np.uint8], class_names: Sequence[str] = ()) -> bytes:
    """Encode a label map (H, W) as a palette PNG in the colours of its classes, see `class_palette`.

    `images.decode_png` returns the same integers.
    """
    image = Image.fromarray(label_map)
    image.putpalette(class_palette(class_names).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
