"""The font of our pictures. Pillow's own has ASCII only, and names of classes and photos are the user's."""

from __future__ import annotations

from pathlib import Path

from PIL import ImageFont


def font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic and Arabic letters."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size_px)
