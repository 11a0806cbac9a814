"""Boundary maps of images: by local colour gradients, which need no weights, or by the learned HED."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from boxsup_dist.proposals import features
from boxsup_dist.proposals.superpixels import smooth

Detector = Literal["gradient", "hed"]
_SIGMAS = (1.0, 2.0, 4.0)
_FULL_GRADIENT = 40.0  # such a length, of channels in 0..255, is as strong as a boundary gets


class Boundaries(NamedTuple):
    """Boundary strength of every pixel of an image, 0 to 1, float32 (H, W)."""

    mean: np.ndarray  # all scales
    coarse: np.ndarray  # the coarsest scale alone: object outlines rather than texture


def gradient_boundaries(image: np.ndarray) -> Boundaries:
    """Length of the Lab gradient at three scales, each multiplied by its scale; `image` is uint8 RGB (H, W, 3)."""
    lab = features.colour_space(image, "lab")
    strengths = [sigma * _gradient(smooth(lab, sigma)) for sigma in _SIGMAS]
    mean = np.mean(strengths, 0, dtype=np.float32)
    return Boundaries(*(np.minimum(s / _FULL_GRADIENT, 1) for s in (mean, strengths[-1])))


def _gradient(channels: np.ndarray) -> np.ndarray:
    padded = np.pad(channels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    down = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    across = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    return np.sqrt((down**2 + across**2).sum(-1))


def hed_boundaries(images: Sequence[np.ndarray], weights: str) -> list[Boundaries]:
    """HED at scales 1 and 1/2, images uint8 RGB (H, W, 3) of any sizes; WeightsError if `weights` can't be loaded.

    The fused output at both scales is averaged with the second side, which keeps small objects apart.
    """
    from boxsup_dist.proposals import hed  # torch takes seconds to import; only this detector needs it

    network = hed.load_hed(weights)
    full = hed.detect(images, network)
    half = hed.detect([_half(image) for image in images], network)
    found = []
    for image, fine, small in zip(images, full, half, strict=True):
        coarse = np.asarray(Image.fromarray(small[0]).resize(image.shape[1::-1], Image.Resampling.BILINEAR))
        found.append(Boundaries((fine[0] + fine[2] + coarse) / 3, coarse))
    return found


def _half(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    size = (max(width // 2, 1), max(height // 2, 1))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
