"""The dense CRF removes noise and keeps the edge of the image."""

from __future__ import annotations

import numpy as np
import pytest

from boxsup_dist.errors import SettingError
from boxsup_dist.model.crf import CRF_SETTINGS, crf_settings, dense_crf


def two_regions(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with a colour edge, noisy log-probabilities of 3 classes (class 2 never), and the true label map."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((40, 60), np.int64)
    truth[:, 27:] = 1
    colours = np.array([[60, 90, 120], [190, 140, 70]])
    image = np.clip(colours[truth] + rng.normal(0, 4, (40, 60, 3)), 0, 255).astype(np.uint8)
    noisy = np.where(rng.random(truth.shape) < 0.25, 1 - truth, truth)
    probs = np.stack([np.where(noisy == c, 0.7, 0.3) for c in (0, 1)] + [np.zeros(truth.shape)])
    with np.errstate(divide="ignore"):
        return image, np.log(probs).astype(np.float32), truth


@pytest.mark.parametrize("name", sorted(CRF_SETTINGS))
def test_sharpens_noisy_regions_along_the_image(name):
    image, log_probs, truth = two_regions()
    image.flags.writeable = False  # as decode_image gives it
    before = (log_probs.argmax(0) == truth).mean()
    probs = dense_crf(image, log_probs, crf_settings(name))
    assert probs.dtype == np.float32 and probs.shape == log_probs.shape
    assert np.allclose(probs.sum(0), 1, atol=1e-3)
    assert (probs.argmax(0) == truth).mean() > 0.99 > before


def test_repeats_exactly_and_leaves_inputs_alone():
    image, log_probs, _ = two_regions()
    copies = image.copy(), log_probs.copy()
    settings = crf_settings("deeplab_vgg")
    assert np.array_equal(dense_crf(image, log_probs, settings), dense_crf(image, log_probs, settings))
    assert np.array_equal(image, copies[0]) and np.array_equal(log_probs, copies[1])


def test_one_pixel():
    probs = dense_crf(np.zeros((1, 1, 3), np.uint8), np.log([[[0.2]], [[0.8]]]), crf_settings("deeplab_v2"))
    assert probs.argmax(0).item() == 1


def test_bad_input_is_refused():
    image, log_probs, _ = two_regions()
    with pytest.raises(ValueError, match="does not belong"):
        dense_crf(image[:-1], log_probs, crf_settings("deeplab_vgg"))
    with pytest.raises(SettingError, match="deeplab_vgg"):
        crf_settings("best")
