"""Colour spaces, and the colour and texture histograms of superpixels (Uijlings et al. 2013, section 3.2)."""

from __future__ import annotations

import numba
import numpy as np
from PIL import Image
from skimage import color

COLOUR_BINS = 25
TEXTURE_BINS = 10
_DIRECTIONS = 8
# The square root of a gradient component spreads the many weak ones; 64 grey levels per pixel and more share a bin.
_TEXTURE_BINS_PER_ROOT = TEXTURE_BINS / 8
_LAB_SCALE = np.array([2.55, 1.275, 1.275], np.float32)
_LAB_SHIFT = np.array([0, 127, 127], np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _lab(image: np.ndarray) -> np.ndarray:
    return color.rgb2lab(image).astype(np.float32) * _LAB_SCALE + _LAB_SHIFT


def _normalised(image: np.ndarray) -> np.ndarray:
    rgb = image.astype(np.float32)
    total = rgb.sum(-1) + 1
    return np.stack([rgb[..., 0] / total * 255, rgb[..., 1] / total * 255, total / 3], -1)


def _hsv(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("HSV"), np.float32)


def _position(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([rows * (255 / height), columns * (255 / width)], -1)


COLOUR_SPACES = {
    "rgb": lambda image: image.astype(np.float32),
    "lab": _lab,
    "ab": lambda image: np.clip(_lab(image)[..., 1:] * 2 - 127, 0, 255),
    "hsv": _hsv,
    "hue": lambda image: _hsv(image)[..., :1],
    "rgi": _normalised,  # normalised red and green, intensity
    "grey": lambda image: (image.astype(np.float32) @ _LUMA)[..., None],
    "position": _position,  # not a colour, but compared like one: keeps regions compact
}


def colour_space(image: np.ndarray, name: str) -> np.ndarray:
    """The image in a colour space of COLOUR_SPACES, float32 (H, W, D), every channel within 0..255."""
    return COLOUR_SPACES[name](image)


@numba.njit(cache=True)
def _normalise(histograms: np.ndarray) -> np.ndarray:
    for s in range(len(histograms)):
        histograms[s] /= max(histograms[s].sum(), 1)
    return histograms


@numba.njit(cache=True)
def _colour(superpixels: np.ndarray, channels: np.ndarray, num_superpixels: int) -> np.ndarray:
    height, width, depth = channels.shape
    out = np.zeros((num_superpixels, depth * COLOUR_BINS), np.float32)
    for y in range(height):
        for x in range(width):
            for c in range(depth):
                level = int(channels[y, x, c] * np.float32(COLOUR_BINS / 256))
                out[superpixels[y, x], c * COLOUR_BINS + min(max(level, 0), COLOUR_BINS - 1)] += 1
    return _normalise(out)


def colour_histograms(superpixels: np.ndarray, num_superpixels: int, channels: np.ndarray) -> np.ndarray:
    """L1-normalised histograms of 25 bins a channel, float32 (S, 25 D), of `channels`, float32 (H, W, D) in 0..255."""
    return _colour(superpixels, channels, num_superpixels)


@numba.njit(cache=True)
def _texture(superpixels: np.ndarray, channels: np.ndarray, num_superpixels: int) -> np.ndarray:
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


def texture_histograms(superpixels: np.ndarray, num_superpixels: int, channels: np.ndarray) -> np.ndarray:
    """L1-normalised histograms of the gradient in 8 directions, 10 bins each per channel, float32 (S, 80 D).

    `channels` is float32 (H, W, D) in 0..255, smoothed with a Gaussian of about 1 pixel.
    """
    return _texture(superpixels, channels, num_superpixels)
