"""Colour spaces, and the colour and texture histograms of superpixels (Uijlings et al., IJCV 2013, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import color

from boxsup_dist.proposals.compiled import compiled

COLOUR_BINS = 25
TEXTURE_BINS = 10
_DIRECTIONS = 8
# The square root spreads the many weak gradients over the bins; 64 grey levels per pixel and more share the last bin.
_TEXTURE_BINS_PER_ROOT = TEXTURE_BINS / 8
_LAB_SCALE = np.array([2.55, 1.275, 1.275], np.float32)
_LAB_SHIFT = np.array([0, 127, 127], np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _lab(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    lab: NDArray[np.float32] = color.rgb2lab(image).astype(np.float32) * _LAB_SCALE + _LAB_SHIFT
    return lab


def _normalised(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    rgb = image.astype(np.float32)
    total = rgb.sum(-1) + 1
    return np.stack([rgb[..., 0] / total * 255, rgb[..., 1] / total * 255, total / 3], -1)


def _hsv(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(image).convert("HSV"), np.float32)


def _position(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([rows * (255 / height), columns * (255 / width)], -1)


_CONVERSIONS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    "rgb": lambda image: image.astype(np.float32),
    "lab": _lab,
    "ab": lambda image: np.clip(_lab(image)[..., 1:] * 2 - 127, 0, 255),
    "hsv": _hsv,
    "hue": lambda image: _hsv(image)[..., :1],
    "rgi": _normalised,  # normalised red and green, intensity
    "grey": lambda image: (image.astype(np.float32) @ _LUMA)[..., None],
    "position": _position,  # not a colour but compared like one; it keeps regions compact
}


def colour_space(image: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    """Convert an RGB image (H, W, 3) to one of settings.COLOUR_SPACES, (H, W, D), every channel within 0..255."""
    return _CONVERSIONS[name](image)


@compiled
def _normalise(histograms: NDArray[np.float32]) -> NDArray[np.float32]:
    for s in range(len(histograms)):
        histograms[s] /= max(histograms[s].sum(), 1)
    return histograms


@compiled
def _colour(
    superpixels: NDArray[np.uint16], channels: NDArray[np.float32], num_superpixels: int
) -> NDArray[np.float32]:
    height, width, depth = channels.shape
    out = np.zeros((num_superpixels, depth * COLOUR_BINS), np.float32)
    for y in range(height):
        for x in range(width):
            for c in range(depth):
                level = int(channels[y, x, c] * np.float32(COLOUR_BINS / 256))
                out[superpixels[y, x], c * COLOUR_BINS + min(max(level, 0), COLOUR_BINS - 1)] += 1
    return _normalise(out)


def colour_histograms(
    superpixels: NDArray[np.uint16], num_superpixels: int, channels: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the colour histogram of every superpixel, L1-normalised, with 25 bins per channel: (S, 25 D).

    Args:
        superpixels: Superpixel map (H, W).
        num_superpixels: S.
        channels: The image in a colour space, (H, W, D), 0..255.
    """
    histograms: NDArray[np.float32] = _colour(superpixels, channels, num_superpixels)
    return histograms


@compiled
def _texture(
    superpixels: NDArray[np.uint16], channels: NDArray[np.float32], num_superpixels: int
) -> NDArray[np.float32]:
    height, width, depth = channels.shape
    out = np.zeros((num_superpixels, depth * _DIRECTIONS * TEXTURE_BINS), np.float32)
    half = np.float32(np.sqrt(0.5))
    for y in range(height):
        for x in range(width):
            counts = out[superpixels[y, x]]
            for c in range(depth):
                gx = (channels[y, min(x + 1, width - 1), c] - channels[y, max(x - 1, 0), c]) / 2
                gy = (channels[min(y + 1, height - 1), x, c] - channels[max(y - 1, 0), x, c]) / 2
                for d, response in enumerate((gx, (gx + gy) * half, gy, (gy - gx) * half)):
                    level = min(int(np.sqrt(abs(response)) * _TEXTURE_BINS_PER_ROOT), TEXTURE_BINS - 1)
                    ahead = (c * _DIRECTIONS + 2 * d) * TEXTURE_BINS
                    behind = ahead + TEXTURE_BINS
                    counts[ahead + (level if response > 0 else 0)] += 1
                    counts[behind + (level if response < 0 else 0)] += 1
    return _normalise(out)


def texture_histograms(
    superpixels: NDArray[np.uint16], num_superpixels: int, channels: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the texture histogram of every superpixel, L1-normalised: (S, 80 D).

    It has 10 bins for the gradient in each of 8 directions, per channel.

    Args:
        superpixels: Superpixel map (H, W).
        num_superpixels: S.
        channels: The image in a colour space, (H, W, D), 0..255, smoothed with a Gaussian of about 1 pixel.
    """
    histograms: NDArray[np.float32] = _texture(superpixels, channels, num_superpixels)
    return histograms
