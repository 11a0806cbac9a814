"""Fully connected CRF (Kraehenbuehl and Koltun 2011) over a network's probabilities, as DeepLab post-processes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

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


# What the CRF of a prediction leaves out: labels that no pixel gives this probability and no pixel finds likeliest, and
# the iterations after one that changed the likeliest label of no more than this share of the pixels. The published CRF,
# and dense_crf unless told, has all labels and always all iterations; jobs.bench crf measures what each gives. The
# lattices take a fifth of the plain one's time, whatever the labels.
MIN_PROB, SETTLED = 0.5, 1e-4

# The first three from DeepLab's published scripts (10 iterations), tuned at original VOC size (long side 500 px).
CRF_SETTINGS = {
    "deeplab_vgg": CrfSettings(4, 49, 5, 3, 3),  # DeepLab-LargeFOV
    "deeplab_v2_vgg": CrfSettings(4, 65, 3, 2, 2),
    "deeplab_v2": CrfSettings(4, 67, 3, 3, 1),  # ResNet-101
    # For WSSL's cut inside a box; theirs are not published. Chosen with the centre's share by label mIoU, in a trial on
    # 104 images of voc-mini.
    "wssl_box": CrfSettings(4, 25, 6, 3, 3),
    # For refining the segments of boxes (assignment/refine.py), in a trial on 166 images: wider ones lose small objects
    "refine": CrfSettings(2, 25, 4, 1, 3),
}


def crf_settings(text: str) -> CrfSettings:
    """A parameter set by its name, or from five numbers "4,67,3,3,1" in the order of CrfSettings' fields.

    SettingError lists the names, and says which number can't work.
    """
    if text in CRF_SETTINGS:
        return CRF_SETTINGS[text]
    names = [field.name for field in fields(CrfSettings)][:5]
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(names):
        expected = f"{', '.join(CRF_SETTINGS)}, or five numbers {','.join(names)}"
        raise SettingError("unknown CRF settings", field="crf", value=text, expected=expected)
    for name, number in zip(names, numbers, strict=True):
        is_weight = name.endswith("weight")
        if not (math.isfinite(number) and (number >= 0 if is_weight else number > 0)):
            expected = f"{name} {'>= 0' if is_weight else '> 0'}"
            raise SettingError("a CRF setting is out of range", field="crf", value=text, expected=expected)
    return CrfSettings(**dict(zip(names, numbers, strict=True)))  # type: ignore[arg-type]


def likely_labels(log_probs: np.ndarray, min_prob: float = MIN_PROB) -> np.ndarray:
    """Ids, ascending, of the labels that some pixel gives at least `min_prob`, or that are some pixel's likeliest.

    `log_probs` float (C, H, W). With min_prob 0 all labels.
    """
    by_label = log_probs.reshape(len(log_probs), -1)
    with np.errstate(divide="ignore"):
        likely = by_label.max(axis=1) >= np.log(min_prob)
    likely[by_label.argmax(axis=0)] = True
    return np.flatnonzero(likely)


@dataclass(frozen=True)
class LikelyScores:
    """Log-probabilities of an image's likely labels alone: all that its CRF needs, and a fraction of the size."""

    labels: np.ndarray  # (L,), ascending ids
    log_probs: np.ndarray  # float32 (L, H, W)

    @classmethod
    def of(cls, log_probs: np.ndarray, min_prob: float = MIN_PROB) -> LikelyScores:
        """From log-probabilities (C, H, W) of all labels."""
        labels = likely_labels(log_probs, min_prob)
        return cls(labels, log_probs[labels])

    def label_map(self, image: np.ndarray, settings: CrfSettings, settled: float = SETTLED) -> np.ndarray:
        """Label map uint8 (H, W) after mean_field on the image, uint8 RGB (H, W, 3). ValueError if sizes differ."""
        return self.labels.astype(np.uint8)[mean_field(image, self.log_probs, settings, settled).argmax(0)]


def dense_crf(
    image: np.ndarray, log_probs: np.ndarray, settings: CrfSettings, *, min_prob: float = 0.0, settled: float = 0.0
) -> np.ndarray:
    """Probabilities float32 (C, H, W) after mean-field inference; its argmax over C is the label map.

    image uint8 RGB (H, W, 3); log_probs float (C, H, W), log-softmax of the same image. Only likely_labels of
    `min_prob` enter the inference, whose time grows with their number; the others get probability 0. With 0 all do.
    `settled` as mean_field. ValueError if sizes differ.
    """
    likely = LikelyScores.of(log_probs, min_prob)
    probs = np.zeros(log_probs.shape, np.float32)
    probs[likely.labels] = mean_field(image, likely.log_probs, settings, settled)
    return probs


def mean_field(image: np.ndarray, log_probs: np.ndarray, settings: CrfSettings, settled: float = 0.0) -> np.ndarray:
    """Probabilities float32 (L, H, W) of the labels of log_probs, all of which enter.

    image uint8 RGB (H, W, 3). Ends before `num_iterations` after one that changed the likeliest label of at most the
    share `settled` of the pixels; with 0 never. ValueError if sizes differ.
    """
    num_labels, height, width = log_probs.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f"image {image.dtype} {image.shape} does not belong to log_probs {log_probs.shape}")
    if num_labels == 1:  # no choice
        return np.ones(log_probs.shape, np.float32)
    from pydensecrf.densecrf import DenseCRF2D

    field = DenseCRF2D(width, height, num_labels)
    # A class of probability 0 has infinite energy, which mean field turns into NaN.
    energy = -np.maximum(log_probs, np.log(1e-30)).astype(np.float32)
    field.setUnaryEnergy(np.ascontiguousarray(energy.reshape(num_labels, -1)))
    field.addPairwiseGaussian(sxy=settings.spatial_xy_std_px, compat=settings.spatial_weight)
    field.addPairwiseBilateral(
        sxy=settings.bilateral_xy_std_px,
        srgb=settings.bilateral_rgb_std,
        rgbim=np.require(image, requirements=("C", "W")),  # a decoded image is read-only, which it refuses
        compat=settings.bilateral_weight,
    )
    if settled == 0:
        probs = np.array(field.inference(settings.num_iterations), np.float32)
    else:
        probs = _until_settled(field, energy.reshape(num_labels, -1).argmin(0), settings.num_iterations, settled)
    return probs.reshape(num_labels, height, width)


def _until_settled(field: Any, label_map: np.ndarray, num_iterations: int, settled: float) -> np.ndarray:
    """Probabilities (L, H * W) from the label map (H * W,) of the energies on."""
    state, *scratch = field.startInference()
    for _ in range(num_iterations):
        field.stepInference(state, *scratch)
        before, label_map = label_map, np.asarray(state).argmax(0)
        if (label_map != before).mean() <= settled:
            break
    return np.array(state, np.float32)
