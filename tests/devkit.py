"""A small VOC devkit made by the tests, good or broken on purpose."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 30, 40
BOXES = (("dog", (1, 1, 20, 30)), ("person", (11, 6, 40, 25)))  # xml: 1-based, both ends inside


def jpeg(height: int = HEIGHT, width: int = WIDTH, mode: str = "RGB", **options: object) -> bytes:
    """A noisy image, so that a cut file lacks pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


def heic(height: int = HEIGHT, width: int = WIDTH, orientation: int = 1) -> bytes:
    """The smooth photo of a phone that was turned: the file says how to turn its pixels, and EXIF repeats it."""
    import pillow_heif

    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 250  # the upper left quarter is bright
    buffer = io.BytesIO()
    pillow_heif.register_heif_opener()
    Image.fromarray(pixels).save(buffer, format="HEIF", exif=exif(orientation))
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    """EXIF data of an image file; the orientations from 5 swap width and height."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def xml(objects: Sequence[tuple[str, Sequence[object]]] = BOXES, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """Annotation of (class, xmin ymin xmax ymax) objects; the second one is difficult."""
    items = "".join(
        f"<object><name>{name}</name><difficult>{int(k == 1)}</difficult><bndbox><xmax>{x1}</xmax><xmin>{x0}</xmin>"
        f"<ymax>{y1}</ymax><ymin>{y0}</ymin></bndbox><part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin>"
        "<xmax>3</xmax><ymax>3</ymax></bndbox></part></object>"
        for k, (name, (x0, y0, x1, y1)) in enumerate(objects)
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{items}</annotation>"


def mask(values: np.ndarray | None = None, mode: str = "P") -> bytes:
    """Label map as PNG: palette by default; a dog with a void border where `values` is None."""
    if values is None:
        values = np.zeros((HEIGHT, WIDTH), np.uint8)
        values[5:15, 5:15] = 255
        values[6:14, 6:14] = 12
    image = Image.fromarray(values)
    if mode == "P":
        image = image.convert("P")
        image.putpalette(list(range(256)) * 3)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write(
    root: Path,
    image_id: str,
    *,
    image: bytes | None = b"",
    annotation: str | None = "",
    masks: dict[str, bytes] | None = None,
) -> None:
    """Write one image's files; empty means the good default, None none at all."""
    files = {f"{folder}/{image_id}.png": data for folder, data in (masks or {}).items()}
    if image is not None:
        files[f"JPEGImages/{image_id}.jpg"] = image or jpeg()
    if annotation is not None:
        files[f"Annotations/{image_id}.xml"] = (annotation or xml()).encode()
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def write_list(root: Path, text: str, name: str = "train", folder: str = "Segmentation") -> None:
    """Write ImageSets/FOLDER/NAME.txt."""
    file = root / "ImageSets" / folder / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
