"""A contact sheet: some images with their boxes and class names, to see at a glance whether boxes fit their images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from boxsup_dist.data.palette import bright_colours
from boxsup_dist.reporting.font import font

TILE_PX, COLUMNS, GAP_PX, LINE_PX = 320, 4, 8, 3
_BRIGHT = 140  # of 255: on a brighter colour the text is black


class Boxed(NamedTuple):
    """An image and its boxes."""

    name: str
    image: NDArray[np.uint8]  # RGB (H, W, 3)
    boxes_xyxy: NDArray[np.float32]  # (K, 4)
    class_ids: NDArray[np.int32]  # (K,)


def draw_contact_sheet(images: Sequence[Boxed], classes: Sequence[str]) -> bytes:
    """Draw the images in rows of COLUMNS as one JPEG.

    Args:
        images: The images, at any size.
        classes: Class names by class id, background first.
    """
    tiles = [_tile(each, classes) for each in images]
    rows = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
    width = COLUMNS * TILE_PX + (COLUMNS + 1) * GAP_PX
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + (len(rows) + 1) * GAP_PX), "white")
    y = GAP_PX
    for row, height in zip(rows, heights, strict=True):
        for place, tile in enumerate(row):
            sheet.paste(tile, (GAP_PX + place * (TILE_PX + GAP_PX), y))
        y += height + GAP_PX
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def _tile(boxed: Boxed, classes: Sequence[str]) -> Image.Image:
    """An image scaled into a square of TILE_PX, with its boxes, and its name below."""
    height, width = boxed.image.shape[:2]
    scale = TILE_PX / max(width, height)
    photo = Image.fromarray(boxed.image).resize((max(1, round(width * scale)), max(1, round(height * scale))))
    letters = font(12)
    caption = 18
    tile = Image.new("RGB", (TILE_PX, photo.height + caption), "white")
    tile.paste(photo, (0, 0))
    pen, colours = ImageDraw.Draw(tile), bright_colours(len(classes))
    order = np.argsort(-(boxed.boxes_xyxy[:, 2:] - boxed.boxes_xyxy[:, :2]).prod(1))  # small boxes in front
    for k in order:
        x0, y0, x1, y1 = (float(value) * scale for value in boxed.boxes_xyxy[k])
        class_id = int(boxed.class_ids[k])
        colour: tuple[int, ...] = tuple(int(value) for value in colours[class_id])
        pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colour, width=LINE_PX)
        text = classes[class_id]
        left, top, right, bottom = pen.textbbox((x0 + LINE_PX, y0 + LINE_PX), text, font=letters)
        pen.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=colour)
        bright = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] > _BRIGHT
        pen.text((x0 + LINE_PX, y0 + LINE_PX), text, fill="black" if bright else "white", font=letters)
    pen.text((0, photo.height + 2), _short(boxed.name), fill="black", font=letters)
    return tile


def _short(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"... {name[4 - most :]}"
