"""Fully connected CRF (Kraehenbuehl and Koltun 2011) over a network's probabilities, as DeepLab post-processes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boxsup_dist.errors import SettingError


@dataclass(frozen=True)
class CrfSettings:
    """Mean-field iterations and the two Potts potentials: appearance (bilateral) and smoothness (spatial)."""

    bilateral_weight: float
    bilateral_xy_std_px: float
    bilateral_rgb_std: float  # on 0..255
    spatial_weight: float
    spatial_xy_std_px: float
    num_iterations: int = 10


# The first three from DeepLab's published scripts. They were tuned at original VOC size (long side 500 px).
CRF_SETTINGS = {
    "deeplab_vgg": CrfSettings(4, 49, 5, 3, 3),  # DeepLab-LargeFOV
    "deeplab_v2_vgg": CrfSettings(4, 65, 3, 2, 2),
    "deeplab_v2": CrfSettings(4, 67, 3, 3, 1),  # ResNet-101
    # For WSSL's cut inside a box; theirs are not published. Chosen by label mIoU on 104 images of voc-mini, with the
    # centre's share: 69.7; wider ones, or a smaller centre, 60 to 69.
    "wssl_box": CrfSettings(4, 25, 6, 3, 3),
    # For refining the segments of boxes (assignment/refine.py), by label mIoU on 166 images there: wider ones lose
    # small objects.
    "refine": CrfSettings(2, 25, 4, 1, 3),
}


def crf_settings(name: str) -> CrfSettings:
    """A published parameter set. SettingError lists the names."""
    if name not in CRF_SETTINGS:
        raise SettingError("unknown CRF settings", field="crf", value=name, expected=", ".join(CRF_SETTINGS))
    return CRF_SETTINGS[name]


def dense_crf(image: np.ndarray, log_probs: np.ndarray, settings: CrfSettings) -> np.ndarray:
    """Probabilities float32 (C, H, W) after mean-field inference; its argmax over C is the label map.

    image uint8 RGB (H, W, 3); log_probs float (C, H, W), log-softmax of the same image. ValueError if sizes differ.
    """
    num_classes, height, width = log_probs.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f"image {image.dtype} {image.shape} does not belong to log_probs {log_probs.shape}")
    from pydensecrf.densecrf import DenseCRF2D

    field = DenseCRF2D(width, height, num_classes)
    # A class of probability 0 has infinite energy, which mean field turns into NaN.
    energy = -np.maximum(log_probs, np.log(1e-30)).astype(np.float32)
    field.setUnaryEnergy(np.ascontiguousarray(energy.reshape(num_classes, -1)))
    field.addPairwiseGaussian(sxy=settings.spatial_xy_std_px, compat=settings.spatial_weight)
    field.addPairwiseBilateral(
        sxy=settings.bilateral_xy_std_px,
        srgb=settings.bilateral_rgb_std,
        rgbim=np.require(image, requirements=("C", "W")),  # a decoded image is read-only, which it refuses
        compat=settings.bilateral_weight,
    )
    return np.array(field.inference(settings.num_iterations), np.float32).reshape(num_classes, height, width)
