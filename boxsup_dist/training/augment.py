"""Random scale, crop and flip of an image and its label map; a pure function of (seed, epoch, image_id)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from boxsup_dist.config import AugmentSettings
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.randomness import generator


def augment(
    image: np.ndarray, label_map: np.ndarray, settings: AugmentSettings, *, seed: int, epoch: int, image_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """Scaled, mirrored and cropped pair: image uint8 (h, w, 3) and label map uint8 (h, w) of the crop's size.

    Where the crop reaches beyond the image, the image is filled with its mean colour and the label map is ignored.
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
    """Start in the source, start in the crop and length of their common stretch; `where` in [0, 1) picks the offset."""
    offset = int(where * (abs(size - crop) + 1))
    return (offset, 0, crop) if size >= crop else (0, offset, size)
