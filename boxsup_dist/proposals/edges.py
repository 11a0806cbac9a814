"""Boundary maps of images: from local colour gradients, which need no weights, or from the learned detector HED."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxsup_dist.proposals import features
from boxsup_dist.proposals.superpixels import smooth

_SIGMAS = (1.0, 2.0, 4.0)
_FULL_GRADIENT = 40.0  # length of a gradient, channels in 0..255, that counts as the strongest boundary


class Boundaries(NamedTuple):
    """Boundary strength of every pixel of an image, 0 to 1; both maps are (H, W)."""

    mean: NDArray[np.float32]  # mean over all scales
    coarse: NDArray[np.float32]  # the coarsest scale: outlines of objects rather than texture


def gradient_boundaries(image: NDArray[np.uint8]) -> Boundaries:
    """Compute boundaries of an RGB image (H, W, 3): the length of its Lab gradient at three scales, times the scale."""
    lab = features.colour_space(image, "lab")
    strengths = [sigma * _gradient(smooth(lab, sigma)) for sigma in _SIGMAS]
    mean = np.mean(strengths, 0, dtype=np.float32)
    return Boundaries(*(np.minimum(s / _FULL_GRADIENT, 1) for s in (mean, strengths[-1])))


def _gradient(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the length (H, W) of the gradient of all channels (H, W, D) together."""
    padded = np.pad(channels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    down = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    across = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    length: NDArray[np.float32] = np.sqrt((down**2 + across**2).sum(-1))
    return length


def hed_boundaries(images: Sequence[NDArray[np.uint8]], weights: str) -> list[Boundaries]:
    """Compute boundaries by HED at the scales 1 and 1/2.

    `mean` is the mean of the fused outputs at both scales and of the second side output, which keeps small objects
    apart. `coarse` is the fused output at scale 1/2.

    Args:
        images: RGB images (H, W, 3) of any sizes.
        weights: Path or URI of HED's weight file.

    Raises:
        WeightsError: If the weights can't be loaded.
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


def _half(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    size = (max(width // 2, 1), max(height // 2, 1))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
