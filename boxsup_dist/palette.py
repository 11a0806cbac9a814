"""The VOC colour map: how label maps are shown, and the palette of the mask PNGs in a VOC devkit."""

from __future__ import annotations

import numpy as np


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
