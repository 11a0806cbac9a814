"""Image files as bytes: decoding photographs to RGB, and label maps to and from PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

# Only these formats are opened. Pillow knows others that start a program (EPS) or look like source code (XBM).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""What is always read; `open_file` also reads HEIC, with the extra."""
IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2",
    ".avif", ".heic", ".heif", ".hif",
)  # fmt: skip
"""Of the files of these formats, in lower case."""
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
# 8192 x 8192, more than any common camera makes. Decoding takes about ten bytes per pixel.
MAX_PIXELS = 2**26
_DARK = 16  # an image whose largest value is below 1/16 of the range looks black


def encode_png(label_map: NDArray[np.uint8]) -> bytes:
    """Encode a label map (H, W) as a grey PNG; `decode_png` returns the same integers."""
    buffer = io.BytesIO()
    Image.fromarray(label_map).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """Decode a label map, a PNG of 8 bits: the stored integers (H, W), for a palette PNG the palette indices.

    Raises:
        OSError: If the bytes are damaged or not a PNG.
    """
    with image_errors():
        return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))


class MissingExtraError(OSError):
    """An image is of a format whose package is not installed; the text names the extra."""


def open_file(data: bytes) -> Image.Image:
    """Open an image file of one of IMAGE_FORMATS, or HEIC, without decoding its pixels yet.

    Raises:
        MissingExtraError: A HEIC file, and pillow-heif is not installed.
        OSError: The bytes are of another format. Damaged ones may raise anything: use it within `image_errors`.
    """
    formats: tuple[str, ...] = IMAGE_FORMATS
    if _is_heic(data):
        try:
            import pillow_heif
        except ImportError:
            raise MissingExtraError('a HEIC image needs an extra: pip install "boxsup-dist[heic]"') from None
        pillow_heif.register_heif_opener()  # cheap, and the same again
        formats = ("HEIF",)
    return Image.open(io.BytesIO(data), formats=formats)


def _is_heic(data: bytes) -> bool:
    """Whether a file says in its first box, which lists what it can be read as, that it is HEIC."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[place : place + 4] for place in (8, *range(16, size, 4))]
    return data[4:8] == b"ftyp" and any(brand in _HEIC_BRANDS for brand in brands)


@contextmanager
def image_errors() -> Iterator[None]:
    """Turn whatever Pillow raises for damaged bytes inside the block into an OSError."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # each format's decoder raises errors of its own
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None


def decode_image(data: bytes, *, turn_by_exif: bool = False, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image file to RGB (H, W, 3); see `open_image`."""
    return np.asarray(open_image(data, turn_by_exif=turn_by_exif, max_pixels=max_pixels))


def open_image(data: bytes, *, turn_by_exif: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file that `open_file` opens to an RGB image of Pillow.

    Grey, CMYK and palette images are converted; transparency is dropped. Grey images of other than 8 bits are scaled to
    8 bits, see `_to_8_bits`.

    Args:
        data: The file's bytes.
        turn_by_exif: Rotate the image as its EXIF orientation says. Leave it off for images of a records table: their
            annotations refer to the stored orientation.
        max_pixels: A larger image is refused before it is decoded.

    Raises:
        OSError: If the bytes are damaged or of another format, or the image has more than `max_pixels` pixels or would
            look black.
    """
    with image_errors(), open_file(data) as opened:
        check_size(opened, max_pixels)
        is_deep = _is_deep(opened)
        image = ImageOps.exif_transpose(opened) if turn_by_exif else opened
        if image.mode == "F" or image.mode.startswith("I"):
            grey = _to_8_bits(_grey_values(image, opened), _stated_bits(opened))
            if _tag(opened, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0:  # 0 is white
                grey = 255 - grey
            return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
        if is_deep:
            _refuse_dark(image)
        # Each copy of the largest image takes 200 MiB.
        image.load()  # before the file is closed
        return image if image.mode == "RGB" else image.convert("RGB")


def check_size(image: Image.Image, max_pixels: int = MAX_PIXELS) -> None:
    """Raise OSError if an image, opened but not yet decoded, has more than `max_pixels` pixels."""
    width, height = image.size
    if width * height > max_pixels:
        raise OSError(
            f"the image has {width} x {height} = {width * height} pixels, more than {max_pixels}: scale it down"
        )


def exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation of an image file, 1 to 8; 1, also without EXIF: it is shown as it is decoded.

    A HEIC file always has 1: it says itself how its pixels are to be turned, which every decoder does, and its EXIF
    orientation only repeats that.
    """
    with image_errors(), open_file(data) as image:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def is_turned(data: bytes) -> bool:
    """Return whether the EXIF orientation of an image file swaps width and height, as those of upright photos do."""
    return exif_orientation(data) >= 5


def turned_by_exif(data: bytes) -> bytes:
    """Return an image file as a PNG of its pixels turned by its EXIF orientation; errors as `open_image`."""
    buffer = io.BytesIO()
    open_image(data, turn_by_exif=True).save(buffer, format="PNG")
    return buffer.getvalue()


def _is_deep(image: Image.Image) -> bool:
    """Return whether the file stores 16 bits per channel. Pillow keeps the upper 8 of a colour image."""
    tiles = getattr(image, "tile", [])
    return any(";16" in str(tile.args) or (tile.codec_name == "ppm" and tile.args[-1] > 255) for tile in tiles)


def _refuse_dark(image: Image.Image) -> None:
    """Raise OSError if the upper 8 bits of a colour image hold (almost) nothing."""
    names = [band for band in image.getbands() if band != "A"]
    if max(int(np.asarray(image.getchannel(name)).max()) for name in names) <= 2**8 / _DARK:
        raise OSError(
            "the image has 16 bits per channel and no value above 4,095: scale a 12-bit image to 8 or 16 bits"
        )


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """Return the (first) number of a tag of a TIFF file; the default for a file without it and for other formats."""
    value: Any = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _stated_bits(image: Image.Image) -> int | None:
    """Return the bits per sample of a TIFF file if they are below 16, as with 12 bits in 12; else None."""
    bits = _tag(image, TiffImagePlugin.BITSPERSAMPLE, 16)
    return bits if 8 <= bits < 16 else None


def _grey_values(image: Image.Image, opened: Image.Image) -> NDArray[Any]:
    values = np.asarray(image)
    is_unsigned = _tag(opened, TiffImagePlugin.SAMPLEFORMAT, 1) == 1
    if opened.format == "TIFF" and values.dtype == np.int32 and is_unsigned:  # Pillow reads them as signed
        return values.view(np.uint32)
    return values


def _to_8_bits(values: NDArray[Any], bits: int | None) -> NDArray[np.uint8]:
    """Scale a grey image to 8 bits.

    A file with 12 bits in 16, or with floats in 0..1, does not state its range. The range is the smallest of 0..1, 8,
    12 and 16 bits that holds the largest value: in the next larger range the image would look black. An image that
    looks black even so, or has values below 0 or above 65,535, is scaled by its own range.

    Args:
        values: (H, W), integers or floats.
        bits: Bits of the range, if the file states them.

    Returns:
        (H, W): of a range of 8 bits or more the upper 8 bits.

    Raises:
        OSError: If a value is no number, or all have one value below 0.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise OSError("the image has values that are not finite numbers")
    if low == high < 0:
        raise OSError(f"every pixel of the image is {low:g}")
    if low >= 0 and high <= 2**16 - 1:
        bits = bits or next(bits for bits in (1, 8, 12, 16) if high <= 2**bits - 1)
        if bits >= 8 and high > 2**bits / _DARK:
            return (values.astype(np.uint16) >> (bits - 8)).astype(np.uint8)
        if bits == 1 and high > 1 / _DARK:
            high = 1.0
    zero = min(low, 0.0)
    return ((values.astype(np.float64) - zero) * (255 / ((high - zero) or 1)) + 0.5).astype(np.uint8)
