"""The augmentation of an image and its label map: random scale, mirror and crop, a function of (seed, epoch, image_id).

Image and label map move together. The draw does not depend on the worker, the order of the images or a restart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat

from boxsup_dist.config import AugmentSettings
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.randomness import generator


def augment(
    image: Image.Image,
    label_map: NDArray[np.uint8],
    settings: AugmentSettings,
    *,
    seed: int,
    epoch: int,
    image_id: str,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scale, mirror and crop a training pair.

    Args:
        image: RGB, of Pillow: an array of it would be copied twice.
        label_map: (H, W), of the image's size; or (H, W, 2) with a second map that moves with it.
        settings: Ranges of the draw and size of the crop.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        image_id: The record.

    Returns:
        Image (h, w, 3) and label map (h, w) or (h, w, 2) of the crop's size. Pixels of the crop beyond the image get
        the image's mean colour and IGNORE_INDEX.
    """
    rng = generator(seed, epoch, "augment", image_id)
    scale = float(rng.uniform(settings.scale_min, settings.scale_max))
    mirror = settings.flip and bool(rng.integers(2))
    across, down = rng.random(2)

    height, width = (max(1, round(side * scale)) for side in label_map.shape[:2])
    crop = (settings.crop_height_px, settings.crop_width_px)
    source_y, target_y, length_y = _place(height, crop[0], down)
    source_x, target_x, length_x = _place(width, crop[1], across)
    if mirror:  # the crop's place is that in the mirrored image; only the crop is mirrored
        source_x = width - source_x - length_x
    window = (source_x, source_y, source_x + length_x, source_y + length_y)

    def cut(scaled: Image.Image, beyond: tuple[int, ...]) -> NDArray[np.uint8]:
        piece = scaled.crop(window)
        if mirror:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas = Image.new(scaled.mode, crop[::-1], beyond)
        canvas.paste(piece, (target_x, target_y))
        return np.asarray(canvas)

    pixels = image.resize((width, height), Image.Resampling.BILINEAR)
    labels = Image.fromarray(label_map).resize((width, height), Image.Resampling.NEAREST)
    is_padded = (length_y, length_x) != crop
    # The mean of all scaled pixels takes as long as the scaling, so it is computed only where the crop shows it.
    colour = tuple(map(round, ImageStat.Stat(pixels).mean)) if is_padded else (0, 0, 0)
    return cut(pixels, colour), cut(labels, (IGNORE_INDEX,) * len(labels.getbands()))


def _place(size: int, crop: int, where: float) -> tuple[int, int, int]:
    """Place the crop along one axis; `where` in [0, 1) picks the offset.

    Returns the first pixel of the common stretch in the image and in the crop, and its length.
    """
    offset = int(where * (abs(size - crop) + 1))
    return (offset, 0, crop) if size >= crop else (0, offset, size)
