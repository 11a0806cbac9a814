"""Fully connected CRF (Kraehenbuehl and Koltun 2011) over a network's probabilities, as DeepLab post-processes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


# Two shortcuts of the prediction CRF. MIN_PROB: drop a label unless some pixel gives it at least this probability or
# ranks it first. SETTLED: stop once at most this share of the pixels changed. The published CRF uses neither, and
# dense_crf uses them only if asked to; jobs.bench crf measures what each saves. Building the lattices takes a fifth of
# the time of the published CRF, however few labels there are.
MIN_PROB, SETTLED = 0.5, 1e-4

# The first three are from DeepLab's published scripts (10 iterations), tuned at VOC's size (long side 500 px).
CRF_SETTINGS = {
    "deeplab_vgg": CrfSettings(4, 49, 5, 3, 3),  # DeepLab-LargeFOV
    "deeplab_v2_vgg": CrfSettings(4, 65, 3, 2, 2),
    "deeplab_v2": CrfSettings(4, 67, 3, 3, 1),  # ResNet-101
    # For WSSL's cut inside a box, whose parameters are not published. Chosen by label mIoU on 104 images of voc-mini,
    # together with the share of the centre (assignment/static.py).
    "wssl_box": CrfSettings(4, 25, 6, 3, 3),
    # For refining the segments of boxes (assignment/refine.py). Chosen on 166 images: wider ones lose small objects.
    "refine": CrfSettings(2, 25, 4, 1, 3),
}


def crf_settings(text: str) -> CrfSettings:
    """A parameter set by its name, or from five numbers as "4,67,3,3,1" in the order of the fields of CrfSettings.

    Raises:
        SettingError: Neither; lists the names, or says which number is out of range.
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


def likely_labels(log_probs: NDArray[np.floating[Any]], min_prob: float = MIN_PROB) -> NDArray[np.int64]:
    """Labels (L,), ascending, that some pixel gives at least `min_prob` or ranks first; all labels if it is 0.

    `log_probs` is (C, H, W).
    """
    by_label = log_probs.reshape(len(log_probs), -1)
    with np.errstate(divide="ignore"):
        likely = by_label.max(axis=1) >= np.log(min_prob)
    likely[by_label.argmax(axis=0)] = True
    return np.flatnonzero(likely)


@dataclass(frozen=True)
class LikelyScores:
    """Log-probabilities of the likely labels of an image: all that its CRF needs, in a fraction of the size."""

    labels: NDArray[np.int64]  # (L,), ascending ids
    log_probs: NDArray[np.floating[Any]]  # (L, H, W)

    @classmethod
    def of(cls, log_probs: NDArray[np.floating[Any]], min_prob: float = MIN_PROB) -> LikelyScores:
        """From the log-probabilities (C, H, W) of all labels."""
        labels = likely_labels(log_probs, min_prob)
        return cls(labels, log_probs[labels])

    def label_map(self, image: NDArray[np.uint8], settings: CrfSettings, settled: float = SETTLED) -> NDArray[np.uint8]:
        """Label map (H, W) after mean_field; arguments and errors as there."""
        found: NDArray[np.uint8] = self.labels.astype(np.uint8)[
            mean_field(image, self.log_probs, settings, settled).argmax(0)
        ]
        return found


def dense_crf(
    image: NDArray[np.uint8],
    log_probs: NDArray[np.floating[Any]],
    settings: CrfSettings,
    *,
    min_prob: float = 0.0,
    settled: float = 0.0,
) -> NDArray[np.float32]:
    """Probabilities (C, H, W) of all labels after mean-field inference; their argmax over C is the label map.

    Args:
        image: RGB (H, W, 3).
        log_probs: Log-softmax (C, H, W) of the same image.
        settings: The potentials.
        min_prob: Only likely_labels of this value enter the inference, whose time grows with their number. The others
            get probability 0. With 0 all labels enter.
        settled: As in `mean_field`.

    Raises:
        ValueError: The sizes differ.
    """
    likely = LikelyScores.of(log_probs, min_prob)
    probs = np.zeros(log_probs.shape, np.float32)
    probs[likely.labels] = mean_field(image, likely.log_probs, settings, settled)
    return probs


def mean_field(
    image: NDArray[np.uint8], log_probs: NDArray[np.floating[Any]], settings: CrfSettings, settled: float = 0.0
) -> NDArray[np.float32]:
    """Probabilities (L, H, W) after mean-field inference with every label of `log_probs`.

    Args:
        image: RGB (H, W, 3).
        log_probs: (L, H, W), of the same image.
        settings: The potentials and the number of iterations.
        settled: Stop after an iteration that changed the first-ranked label of at most this share of the pixels. 0:
            do all iterations.

    Raises:
        ValueError: The sizes differ.
    """
    num_labels, height, width = log_probs.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f"image {image.dtype} {image.shape} does not fit log_probs {log_probs.shape}")
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
        rgbim=np.require(image, requirements=("C", "W")),  # pydensecrf refuses read-only arrays, as decoded images are
        compat=settings.bilateral_weight,
    )
    if settled == 0:
        probs = np.array(field.inference(settings.num_iterations), np.float32)
    else:
        probs = _until_settled(field, energy.reshape(num_labels, -1).argmin(0), settings.num_iterations, settled)
    return probs.reshape(num_labels, height, width)


def _until_settled(
    field: Any, label_map: NDArray[np.int64], num_iterations: int, settled: float
) -> NDArray[np.float32]:
    """Probabilities (L, H * W); `label_map` (H * W,) is that of the unary energies."""
    state, *scratch = field.startInference()
    for _ in range(num_iterations):
        field.stepInference(state, *scratch)
        before, label_map = label_map, np.asarray(state).argmax(0)
        if (label_map != before).mean() <= settled:
            break
    return np.array(state, np.float32)
