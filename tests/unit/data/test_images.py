"""Decoding of image files of every colour mode, and label maps as PNG."""

import io

import numpy as np
import pytest
from PIL import Image

from boxsup_dist.data.images import decode_image, decode_png, encode_png


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
