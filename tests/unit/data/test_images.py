"""Decoding of image files of every colour mode, and label maps as PNG."""

import io
import struct
import sys
import tracemalloc
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from PIL import Image

from boxsup_dist import api
from boxsup_dist.data.images import (
    IMAGE_FORMATS,
    MAX_PIXELS,
    MissingExtraError,
    decode_image,
    decode_png,
    encode_png,
    exif_orientation,
    is_turned,
)
from boxsup_dist.errors import RecordError
from boxsup_dist.export.images import ending_of
from boxsup_dist.records.files import read_image
from tests import devkit


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (13, 17)])
def test_label_maps_survive_their_encoding(shape):
    rng = np.random.default_rng(0)
    for array in (rng.integers(0, 256, shape, np.uint8), rng.integers(0, 2**16, shape, np.uint16)):
        decoded = decode_png(encode_png(array))
        assert decoded.dtype == array.dtype and (decoded == array).all()


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)

GREY = COLOURS[..., 0]


def test_colour_and_alpha_images():
    assert (decode_image(encode(Image.fromarray(COLOURS))) == COLOURS).all()
    with_alpha = np.concatenate([COLOURS, GREY[..., None]], axis=2)
    assert (decode_image(encode(Image.fromarray(with_alpha))) == COLOURS).all()


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_images_have_three_equal_channels(mode):
    if mode == "I;16":
        image = Image.fromarray(GREY.astype(np.uint16) * 256 + 77)
    else:
        image = Image.fromarray(GREY).convert(mode)
    decoded = decode_image(encode(image))
    assert decoded.dtype == np.uint8 and (decoded == GREY[..., None]).all() and decoded.shape == (6, 9, 3)


def test_one_bit_images():
    bits = GREY > 127
    assert (decode_image(encode(Image.fromarray(bits))) == 255 * bits[..., None]).all()


def test_palette_images_give_colours_and_palette_masks_give_indices():
    indices = np.arange(54, dtype=np.uint8).reshape(6, 9)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(palette.tobytes())
    assert (decode_image(encode(image)) == palette[indices]).all()
    assert (decode_png(encode(image)) == indices).all()


def test_cmyk_jpegs_keep_their_colours():
    smooth = np.full((16, 16, 3), (200, 80, 30), np.uint8)
    decoded = decode_image(encode(Image.fromarray(smooth).convert("CMYK"), "JPEG"))
    assert decoded.shape == (16, 16, 3) and np.abs(decoded.astype(int) - smooth).max() <= 6


# -- other than 8 bits ------------------------------------------------------------------------------------------------

# A picture of 8 bits from dark to light, which every depth must give back.
RAMP = np.linspace(0, 250, 54).astype(np.uint8).reshape(6, 9)


def tiff(values: np.ndarray, *, bits: int = 0, order: str = "<", white_is_zero: bool = False) -> bytes:
    """A grey TIFF of any number type. `bits`: packed with so many bits."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        pairs = np.pad(values, ((0, 0), (0, values.shape[1] % 2))).reshape(len(values), -1, 2).astype(int)
        first, second = pairs[..., 0], pairs[..., 1]
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2)
        data = packed.reshape(len(values), -1)[:, : -(-12 * values.shape[1] // 8)].astype(np.uint8).tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits or 8 * values.dtype.itemsize), (259, 1),
            (262, int(not white_is_zero)), (273, 8), (277, 1), (278, height), (279, len(data)),
            (339, kind)]  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def pgm(values: np.ndarray, largest: int) -> bytes:
    return f"P5 {values.shape[1]} {values.shape[0]} {largest}\n".encode() + values.astype(">u2").tobytes()


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, which Pillow writes for grey only."""
    return cv2.imencode(".png", values.astype(np.uint16)[..., ::-1])[1].tobytes()


WIDE = RAMP.astype(np.uint16)
DEPTHS = {
    "8 bits in 16, TIFF": tiff(WIDE),
    "12 bits in 16, TIFF": tiff(WIDE * 16 + 7),
    "12 bits in 16, TIFF of big endian": tiff(WIDE * 16 + 7, order=">"),
    "12 bits in 12, TIFF": tiff(WIDE * 16 + 7, bits=12),
    "12 bits in 16, PNG": encode(Image.fromarray(WIDE * 16)),
    "16 bits, TIFF": tiff(WIDE * 256 + 255),
    "16 bits, TIFF of big endian": tiff(WIDE * 256, order=">"),
    "16 bits, PNG": encode(Image.fromarray(WIDE * 256)),
    "12 bits, PGM": pgm(WIDE * 16 + 8, 4095),
    "12 bits in 16, PGM": pgm(WIDE * 16, 65535),
    "16 bits, PGM": pgm(WIDE * 256, 65535),
    "16 bits in 32, TIFF": tiff(WIDE.astype(np.int32) * 256),
    "16 bits, signed, TIFF": tiff(WIDE.astype(np.int16) * 16),
    "floats to 1": tiff((RAMP / 255).astype(np.float32)),
    "floats to 1 of big endian": tiff((RAMP / 255).astype(np.float32), order=">"),
    "floats to 255": tiff(RAMP.astype(np.float32) + 0.5),
    "16 bits, TIFF, 0 is white": tiff((255 - WIDE) * 256, white_is_zero=True),
    "floats to 1, 0 is white": tiff((1 - RAMP / 255).astype(np.float32), white_is_zero=True),
    "floats to 65535": tiff(RAMP.astype(np.float32) * 256),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_every_depth_gives_the_same_picture(name):
    decoded = decode_image(DEPTHS[name])
    assert decoded.dtype == np.uint8 and decoded.shape == (6, 9, 3)
    assert np.abs(decoded - RAMP[..., None].astype(int)).max() <= 1


OWN_RANGE = {
    "signed": tiff(RAMP.astype(np.int32) - 500),
    "signed, 16 bits": tiff(RAMP.astype(np.int16) - 500),
    "unsigned, 32 bits": tiff(RAMP.astype(np.uint32) * 2**24),
    "below a sixteenth": encode(Image.fromarray((RAMP // 25).astype(np.uint16))),
    "floats around 0": tiff((RAMP / 100).astype(np.float32) - 1),
    "floats far above": tiff((RAMP * 1e9).astype(np.float32)),
    "floats a little above 1": tiff((RAMP / 245).astype(np.float32)),
    "small floats": tiff((RAMP / 1e6).astype(np.float32)),
}


@pytest.mark.parametrize("name", OWN_RANGE)
def test_other_ranges_are_scaled_by_their_own(name):
    """From 0, or from the lowest value below it, to the largest."""
    decoded = decode_image(OWN_RANGE[name])
    expected = RAMP // 25 * 25.5 if name == "below a sixteenth" else RAMP * 1.02
    assert np.abs(decoded - expected[..., None]).max() <= 1
    assert decoded.min() == 0 and decoded.max() == 255


def test_dark_images_stay_dark():
    """A quarter of the range is taken for what it is, a sixteenth for a smaller range."""
    assert decode_image(encode(Image.fromarray(WIDE * 64))).max() == 250 // 4
    assert decode_image(tiff(RAMP.astype(np.float32) / 4)).max() == 250 // 4


def test_black_images_stay_black():
    for data in (tiff(WIDE * 0), tiff(RAMP.astype(np.float32) * 0), encode(Image.fromarray(COLOURS * 0))):
        assert not decode_image(data).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value):
    values = RAMP.astype(np.float32)
    values[2, 3] = value
    with pytest.raises(OSError, match="not finite numbers"):
        decode_image(tiff(values))


def test_an_image_of_one_value_below_0_has_no_range():
    with pytest.raises(OSError, match="every pixel of the image is -500"):
        decode_image(tiff(RAMP.astype(np.int32) * 0 - 500))


def test_colours_of_16_bits_are_read_and_of_12_bits_in_16_refused():
    """Pillow keeps the upper 8 bits."""
    wide = COLOURS.astype(np.uint16)
    assert (decode_image(deep_png(wide * 256 + 77)) == COLOURS).all()
    alpha = np.full((6, 9, 1), 65535)
    for dark in (wide * 16, wide, wide // 255):
        for values in (dark, np.concatenate([alpha, dark], axis=2)):  # as OpenCV orders the channels
            with pytest.raises(OSError, match="16 bits per channel and no value above 4,095"):
                decode_image(deep_png(values))
        for kind in (".tif", ".ppm"):
            with pytest.raises(OSError, match="16 bits per channel and no value above 4,095"):
                decode_image(cv2.imencode(kind, dark)[1].tobytes())


def test_avif_is_read():
    """Above, one of the formats: its colours are near, as those of JPEG."""
    smooth = np.full((16, 16, 3), (200, 80, 30), np.uint8)
    decoded = decode_image(encode(Image.fromarray(smooth), "AVIF"))
    assert "AVIF" in IMAGE_FORMATS and np.abs(decoded.astype(int) - smooth).max() <= 6


@pytest.mark.parametrize(
    ("orientation", "bright"), [(1, (0, 0)), (3, (1, 1)), (6, (0, 1)), (8, (1, 0))], ids=["0", "180", "90", "270"]
)
def test_heic_is_read_as_every_decoder_shows_it(orientation, bright):
    """Its own turn is applied whether or not we turn by EXIF, and never twice."""
    data = devkit.heic(orientation=orientation)
    size = (40, 30) if orientation in (6, 8) else (30, 40)
    for turn_by_exif in (False, True):
        decoded = decode_image(data, turn_by_exif=turn_by_exif)
        corners = decoded[[5, 5, -5, -5], [5, -5, 5, -5], 0] > 200
        assert decoded.shape == (*size, 3) and np.argwhere(corners.reshape(2, 2)).tolist() == [list(bright)]
    assert exif_orientation(data) == 1 and ending_of(data) == ".heic"
    with pytest.raises(OSError, match="1200 pixels, more than 1199"):
        decode_image(data, max_pixels=1199)


def test_heic_without_the_extra_names_the_extra(monkeypatch, tmp_path):
    data = devkit.heic()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_1.HEIC").write_bytes(data)
    with pytest.raises(MissingExtraError, match=r'HEIC image.*pip install "boxsup-dist\[heic\]"'):
        decode_image(data)
    for read in (read_image, api.read_image):
        with pytest.raises(RecordError, match=r'^a HEIC image.*"boxsup-dist\[heic\]".*file: .*IMG_1\.HEIC$'):
            read(str(tmp_path / "IMG_1.HEIC"))


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded():
    def png(side: int) -> bytes:
        chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
        parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    tracemalloc.start()
    with pytest.raises(OSError, match=f"9000 x 9000 = 81000000 pixels, more than {MAX_PIXELS}: scale it down"):
        decode_image(png(9000))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    with pytest.raises(OSError, match="54 pixels, more than 53"):
        decode_image(encode(Image.fromarray(COLOURS)), max_pixels=53)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_that_exif_turns_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "JPEG", exif=exif)
    assert is_turned(buffer.getvalue()) == (orientation >= 5)
    assert not is_turned(encode(Image.fromarray(COLOURS)))


@pytest.mark.filterwarnings("ignore")
def test_whatever_is_wrong_with_an_image_is_an_oserror():
    rng = np.random.default_rng(0)
    kinds = {
        "TIFF": COLOURS,
        "PNG": COLOURS,
        "GIF": GREY,
        "BMP": COLOURS,
        "WEBP": COLOURS,
        "PPM": COLOURS,
        "AVIF": COLOURS,
    }
    for kind, values in kinds.items():
        data = encode(Image.fromarray(values), kind)
        for _ in range(100):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[rng.integers(min(len(damaged), 200), size=3)] = rng.integers(256, size=3)
            for decode in (decode_image, decode_png, is_turned):
                with suppress(OSError):
                    decode(damaged.tobytes())
