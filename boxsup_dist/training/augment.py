"""The augmentation of an image and its label map: random scale, mirror and crop, a function of (seed, epoch, image_id).

Image and label map move together. The draw does not depend on the worker, the order of the images or a restart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxsup_dist.config import AugmentSettings
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.randomness import generator


def augment(
    image: NDArray[np.uint8],
    label_map: NDArray[np.uint8],
    settings: AugmentSettings,
    *,
    seed: int,
    epoch: int,
    image_id: str,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scale, mirror and crop a training pair.

    Args:
        image: RGB (H, W, 3).
        label_map: (H, W).
        settings: Ranges of the draw and size of the crop.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        image_id: The record.

    Returns:
        Image (h, w, 3) and label map (h, w) of the crop's size. Pixels of the crop beyond the image get the image's
        mean colour and IGNORE_INDEX.
    """
    rng = generator(seed, epoch, "augment", image_id)
    scale = float(rng.uniform(settings.scale_min, settings.scale_max))
    mirror = settings.flip and bool(rng.integers(2))
    across, down = rng.random(2)

    height, width = (max(1, round(side * scale)) for side in label_map.shape)
    pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    labels = np.asarray(Image.fromarray(label_map).resize((width, height), Image.Resampling.NEAREST))
    if mirror:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]

    crop = (settings.crop_height_px, settings.crop_width_px)
    out_pixels = np.empty((*crop, 3), np.uint8)
    out_pixels[:] = pixels.mean(axis=(0, 1)).round()
    out_labels = np.full(crop, IGNORE_INDEX, np.uint8)
    source_y, target_y, length_y = _place(height, crop[0], down)
    source_x, target_x, length_x = _place(width, crop[1], across)
    source = np.s_[source_y : source_y + length_y, source_x : source_x + length_x]
    target = np.s_[target_y : target_y + length_y, target_x : target_x + length_x]
    out_pixels[target], out_labels[target] = pixels[source], labels[source]
    return out_pixels, out_labels


def _place(size: int, crop: int, where: float) -> tuple[int, int, int]:
    """Place the crop along one axis; `where` in [0, 1) picks the offset.

    Returns the first pixel of the common stretch in the image and in the crop, and its length.
    """
    offset = int(where * (abs(size - crop) + 1))
    return (offset, 0, crop) if size >= crop else (0, offset, size)
