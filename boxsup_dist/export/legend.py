"""The legend of a folder of label maps or overlays: legend.json for programs, legend.png for people."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from boxsup_dist.data.palette import class_palette
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.io import storage
from boxsup_dist.reporting.font import font

_ROW_PX, _SWATCH_PX, _FONT_PX, _ROWS = 28, 44, 16, 25  # a column has at most 25 classes


def write_legend(out: str, class_names: Sequence[str]) -> None:
    """Write value, name and colour of every class, and of ignored pixels.

    Args:
        out: Folder or URI to write to.
        class_names: Names of the C classes; class 0 is the background.
    """
    colours = class_palette(class_names).tolist()
    named = [*enumerate(class_names), (IGNORE_INDEX, "ignored")]
    entries = [{"value": value, "name": name, "colour": colours[value]} for value, name in named]
    storage.write_json(storage.join(out, "legend.json"), entries)
    letters = font(_FONT_PX)
    texts = [f"{value}  {name}" for value, name in named]
    column_px = _SWATCH_PX + 24 + int(max(letters.getlength(text) for text in texts))
    columns, rows = -(-len(texts) // _ROWS), min(len(texts), _ROWS)
    picture = Image.new("RGB", (columns * column_px + 8, rows * _ROW_PX + 8), "white")
    draw = ImageDraw.Draw(picture)
    for number, (text, (value, _)) in enumerate(zip(texts, named, strict=True)):
        x, y = 8 + number // _ROWS * column_px, 8 + number % _ROWS * _ROW_PX
        draw.rectangle((x, y, x + _SWATCH_PX - 8, y + _ROW_PX - 8), fill=tuple(colours[value]), outline="gray")
        draw.text((x + _SWATCH_PX, y), text, fill="black", font=letters)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    storage.write_bytes(storage.join(out, "legend.png"), buffer.getvalue())
