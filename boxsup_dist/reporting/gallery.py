"""The gallery of a run: pictures of its images and their label maps, and the page that shows them.

A label map is a transparent picture that the page lays over its photo. All those of an image stand one below the other
in one file, so that a slider moves from one epoch to the next without loading anything.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX
from boxsup_dist.reporting.html import render
from boxsup_dist.reporting.overlay import near_another_class

LONG_SIDE_PX = 480  # of a shown image
CROP_SIDE_PX = 300  # of the picture of one box
AROUND_BOX = 0.6  # share of a box's sides that its picture shows around it
FILL_ALPHA, EDGE_ALPHA, IGNORE_ALPHA = 128, 255, 70
GAP_PX = 4  # between the label maps of a strip
MAX_LAYERS = 16383 // (LONG_SIDE_PX + GAP_PX)  # the format's limit of a side


def shown_size(height: int, width: int, long_side_px: int = LONG_SIDE_PX) -> tuple[int, int]:
    """Height and width in which an image is shown; a smaller image keeps its size."""
    scale = min(1.0, long_side_px / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def encode_photo(image: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """A photo (H, W, 3) as WebP of `size` (height, width)."""
    picture = Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)
    return _webp(picture, quality=75)


def encode_layers(label_maps: Sequence[NDArray[np.uint8]], colours: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """Label maps (H, W) as one transparent WebP, one below the other, each of `size` (height, width).

    Regions have a translucent fill and an opaque contour of two pixels; ignored pixels are a pale veil. GAP_PX empty
    rows follow each map: a browser that enlarges the strip blends neighbouring rows.

    Args:
        label_maps: At most MAX_LAYERS.
        colours: RGB of every class id, (256, 3).
        size: Height and width to show.
    """
    gap = np.zeros((GAP_PX, size[1], 4), np.uint8)
    parts = [part for each in label_maps for part in (_layer(each, colours, size), gap)]
    return _webp(Image.fromarray(np.concatenate(parts)), lossless=True)


def _layer(label_map: NDArray[np.uint8], colours: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """RGBA (h, w, 4) of one label map."""
    shown = np.asarray(Image.fromarray(label_map).resize(size[::-1], Image.Resampling.NEAREST))
    edge = near_another_class(shown, 2) & (shown != IGNORE_INDEX)
    alpha = np.where(edge, EDGE_ALPHA, FILL_ALPHA).astype(np.uint8)
    alpha[shown == IGNORE_INDEX], alpha[shown == BACKGROUND] = IGNORE_ALPHA, 0
    layer = np.dstack([colours[shown], alpha])
    layer[alpha == 0] = 0  # one colour where nothing shows: a smaller file
    return layer


def crop_window(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the pixels that the picture of a box shows: the box and what lies around it."""
    x0, y0, x1, y1 = box
    margin = AROUND_BOX * max(x1 - x0, y1 - y0)
    low = max(int(x0 - margin), 0), max(int(y0 - margin), 0)
    high = min(int(np.ceil(x1 + margin)), width), min(int(np.ceil(y1 + margin)), height)
    return *low, max(high[0], low[0] + 1), max(high[1], low[1] + 1)


def encode_crop(image: NDArray[np.uint8], window: tuple[int, int, int, int]) -> bytes:
    """A window x0, y0, x1, y1 of a photo (H, W, 3) as WebP; small ones are enlarged at most three times."""
    x0, y0, x1, y1 = window
    scale = min(CROP_SIDE_PX / max(x1 - x0, y1 - y0), 3.0)
    size = max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1)
    picture = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1])).resize(size, Image.Resampling.LANCZOS)
    return _webp(picture, quality=75)


def _webp(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", **options)
    return buffer.getvalue()


def render_gallery(title: str, facts: Sequence[str], doubts: Sequence[str], data: Mapping[str, Any]) -> str:
    """The page as text; it shows the pictures of the folder that it lies in.

    Args:
        title: Name of the run, or of both.
        facts: Short lines below the title.
        doubts: What looks wrong in the boxes as a whole.
        data: What the scripts of the page read: see runs/gallery.py.
    """
    return render("gallery", title=title, facts=list(facts), doubts=list(doubts), data={**data, "gap": GAP_PX})
