"""The dense CRF removes noise and keeps the edge of the image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from boxsup_dist.errors import SettingError
from boxsup_dist.model.crf import (
    CRF_SETTINGS,
    MIN_PROB,
    SETTLED,
    CrfSettings,
    LikelyScores,
    crf_settings,
    dense_crf,
    likely_labels,
    mean_field,
)


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
    with pytest.raises(ValueError, match="does not fit"):
        dense_crf(image[:-1], log_probs, crf_settings("deeplab_vgg"))
    with pytest.raises(SettingError, match="deeplab_vgg"):
        crf_settings("best")


def many_labels(num_classes: int = 21, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image of textured rectangles, and log-probabilities of which four labels matter and the rest have little."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((60, 80), np.int64)
    truth[10:40, 5:35], truth[20:55, 45:75], truth[0:9, 60:80] = 3, 12, 20
    image = np.clip(rng.integers(0, 256, (num_classes, 3))[truth] + rng.normal(0, 12, (60, 80, 3)), 0, 255)
    logits = rng.normal(0, 1, (num_classes, *truth.shape)) - 6.0
    logits[[0, 3, 12, 20]] += 5.0
    np.put_along_axis(logits, truth[None], np.take_along_axis(logits, truth[None], 0) + 2.0, 0)
    log_probs = logits - np.log(np.exp(logits).sum(0))
    return image.astype(np.uint8), log_probs.astype(np.float32)


@pytest.mark.parametrize("name", ["deeplab_vgg", "deeplab_v2_vgg", "deeplab_v2"])
def test_pruned_labels_give_the_label_map_of_all_labels(name):
    image, log_probs = many_labels()
    settings = crf_settings(name)
    whole = dense_crf(image, log_probs, settings)
    pruned = dense_crf(image, log_probs, settings, min_prob=MIN_PROB, settled=SETTLED)
    labels = likely_labels(log_probs)
    assert {0, 3, 12, 20} <= set(labels.tolist()) and len(labels) < 12
    assert pruned.shape == whole.shape and pruned.dtype == np.float32
    assert not np.delete(pruned, labels, 0).any() and np.allclose(pruned.sum(0), 1, atol=1e-3)
    assert (pruned.argmax(0) == whole.argmax(0)).mean() >= 0.999
    scores = LikelyScores.of(log_probs)
    assert np.array_equal(scores.label_map(image, settings), pruned.argmax(0))
    assert scores.label_map(image, settings).dtype == np.uint8


def test_inference_ends_once_the_label_map_has_settled():
    """After the first iteration that changes few enough labels, and not before; the result is that iteration's."""
    image, log_probs, _ = two_regions()
    plain = [log_probs[:2]]  # after 0, 1, ... iterations
    for num_iterations in range(1, 11):
        plain.append(mean_field(image, log_probs[:2], CrfSettings(4, 49, 5, 3, 3, num_iterations)))
    changed = [(a.argmax(0) != b.argmax(0)).mean() for a, b in itertools.pairwise(plain)]
    assert changed[0] > 0.1 and min(changed) == 0
    for settled in (1.0, changed[0], 0.01, SETTLED):
        found = mean_field(image, log_probs[:2], CrfSettings(4, 49, 5, 3, 3), settled)
        last = next(k for k, share in enumerate(changed) if share <= settled)
        assert np.array_equal(found, plain[last + 1])


def test_nothing_pruned_changes_nothing():
    image, log_probs, _ = two_regions()
    two = log_probs[:2]
    settings = crf_settings("deeplab_vgg")
    assert np.array_equal(dense_crf(image, two, settings, min_prob=MIN_PROB), dense_crf(image, two, settings))


def test_a_single_likely_label_is_everywhere():
    image, log_probs, _ = two_regions()
    log_probs = np.log(np.full(log_probs.shape, 1e-3, np.float32))
    log_probs[1] = np.log(0.998)
    probs = dense_crf(image, log_probs, crf_settings("deeplab_vgg"), min_prob=MIN_PROB)
    assert np.array_equal(probs, np.stack([np.full(image.shape[:2], v) for v in (0, 1, 0)]))


def test_likely_labels_keep_every_winner():
    uniform = np.full((21, 2, 2), -np.log(21), np.float32)
    assert likely_labels(uniform, 0.05).tolist() == [0]  # the argmax of all
    assert likely_labels(uniform, 0.04).tolist() == list(range(21)) == likely_labels(uniform, 0.0).tolist()


def test_published_parameter_sets():
    # deeplab-public's and deeplab-public-ver2's scripts
    assert crf_settings("deeplab_vgg") == CrfSettings(4, 49, 5, 3, 3, 10)
    assert crf_settings("deeplab_v2") == crf_settings("4,67,3,3,1") == CrfSettings(4, 67, 3, 3, 1, 10)


@pytest.mark.parametrize("text", ["4,67,3,3", "4,67,3,3,1,9", "a,b", "4,0,3,3,1", "-1,67,3,3,1", "nan,1,1,1,1", ""])
def test_bad_numbers_are_refused(text):
    with pytest.raises(SettingError) as caught:
        crf_settings(text)
    assert caught.value.field == "crf" and caught.value.expected
