"""The fixed-point sums equal plain sums within half a step per pixel, are exact in any order, and cannot overflow."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boxsup_dist.assignment.select import COST_DIGITS
from boxsup_dist.assignment.sums import MAX_MARGIN, fixed_point_bits, reduce_scores, scored_classes, select_scores
from boxsup_dist.config import AssignmentSettings
from boxsup_dist.data.images import MAX_PIXELS
from boxsup_dist.data.painting import pixel_box
from tests.random_proposals import random_superpixels

NUM_CLASSES, HEIGHT, WIDTH, NUM_SUPERPIXELS = 6, 40, 50, 30
IMAGE, CLIPPED = AssignmentSettings(), AssignmentSettings(box_margin=0.25)
CENTRED, LIMITED = AssignmentSettings(form="centred"), AssignmentSettings(form="centred", logit_limit=1.5)
BOXES = np.array([[3.5, 2, 20, 30], [0, 0, WIDTH, HEIGHT], [10, 10, 11, 11], [25, 5, 49.5, 39]], np.float32)
CLASS_IDS = np.array([4, 1, 4, 2], np.int32)


def random_scores(seed: int, spread: float = 4.0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, spread, (NUM_CLASSES, HEIGHT, WIDTH))
    return (logits - np.log(np.exp(logits).sum(0))).astype(np.float32)


def reduced(log_probs: np.ndarray, settings: AssignmentSettings, superpixels: np.ndarray | None = None):
    maps = MAP if superpixels is None else superpixels
    scores = select_scores(log_probs, CLASS_IDS)
    return reduce_scores(scores, maps, NUM_SUPERPIXELS, BOXES, CLASS_IDS, settings)


MAP = random_superpixels(np.random.default_rng(1), HEIGHT, WIDTH, NUM_SUPERPIXELS)


@pytest.mark.parametrize("settings", [IMAGE, CLIPPED, CENTRED, LIMITED])
@pytest.mark.parametrize("spread", [0.01, 4.0, 30.0])
def test_sums_equal_plain_sums_within_half_a_step_a_pixel(settings, spread):
    log_probs = random_scores(0, spread)
    for k, found in enumerate(reduced(log_probs, settings)):
        x0, y0, x1, y1 = pixel_box(BOXES[k], HEIGHT, WIDTH)
        inside = MAP[y0:y1, x0:x1]
        reach = pixel_box(BOXES[k], HEIGHT, WIDTH, margin=settings.box_margin) if settings.form == "image" else None
        x0, y0, x1, y1 = reach or (x0, y0, x1, y1)
        limit = settings.logit_limit or MAX_MARGIN
        d = log_probs[:, y0:y1, x0:x1].astype(np.float64)
        d = np.clip(d[0] - d[CLASS_IDS[k]], -limit, limit)
        regression, areas = found.dense(NUM_SUPERPIXELS)
        norm = HEIGHT * WIDTH if settings.form == "image" else d.size
        losses = np.clip(-log_probs[0].astype(np.float64), 0, MAX_MARGIN)
        constant = losses.sum() / norm if settings.form == "image" else 0.0
        d = d - (d.mean() if settings.form == "centred" else 0.0)
        step = 2.0 ** -fixed_point_bits(HEIGHT * WIDTH)
        assert found.constant == pytest.approx(constant, abs=step)
        for superpixel in range(NUM_SUPERPIXELS):
            here = MAP[y0:y1, x0:x1] == superpixel
            assert areas[superpixel] == (inside == superpixel).sum()
            # Half a step from the margins, half from their mean; the plain sum has errors of its own.
            assert regression[superpixel] == pytest.approx(d[here].sum() / norm, abs=step * here.sum() / norm + 1e-15)


@pytest.mark.parametrize("settings", [IMAGE, CLIPPED, CENTRED, LIMITED])
def test_sums_do_not_depend_on_the_order_of_addition(settings):
    log_probs, superpixels = random_scores(2), MAP
    whole = AssignmentSettings(form=settings.form, logit_limit=settings.logit_limit)
    order = np.random.default_rng(3).permutation(HEIGHT * WIDTH)
    shuffled = log_probs.reshape(NUM_CLASSES, -1)[:, order].reshape(log_probs.shape)
    mixed = superpixels.ravel()[order].reshape(superpixels.shape)
    # Box 1 is the whole image, where a permutation of the pixels changes nothing but the order.
    a, b = reduced(log_probs, whole)[1], reduced(shuffled, whole, mixed)[1]
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@given(num_pixels=st.integers(1, MAX_PIXELS))
def test_no_number_of_pixels_overflows_and_the_error_is_below_what_costs_are_compared_to(num_pixels):
    bits = fixed_point_bits(num_pixels)
    assert num_pixels * int(MAX_MARGIN) * 2**bits < 2**63
    assert 2.0 ** -(bits + 1) < 2 * 10.0**-COST_DIGITS
    if num_pixels <= 2**20:
        assert 2.0 ** -(bits + 1) < 0.03 * 10.0**-COST_DIGITS


def test_margins_of_float32_log_probabilities_are_exact():
    log_probs = random_scores(4)
    assert (log_probs < -(2.0 ** (23 - fixed_point_bits(HEIGHT * WIDTH)))).all()
    (found,) = reduce_scores(
        select_scores(log_probs, CLASS_IDS[1:2]), MAP, NUM_SUPERPIXELS, BOXES[1:2], CLASS_IDS[1:2], IMAGE
    )
    regression, _ = found.dense(NUM_SUPERPIXELS)
    for superpixel in np.unique(MAP)[:5]:
        exact = sum(Fraction(float(b)) - Fraction(float(c)) for b, c in log_probs[:2, superpixel == MAP].T)
        assert regression[superpixel] == float(exact) / (HEIGHT * WIDTH)


def test_logits_of_the_needed_classes_do_for_the_centred_form():
    logits = torch.randn(NUM_CLASSES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    chosen = logits[scored_classes(CLASS_IDS)]
    by_logits = reduce_scores(chosen, MAP, NUM_SUPERPIXELS, BOXES, CLASS_IDS, CENTRED)
    for a, b in zip(by_logits, reduced(logits.log_softmax(0).numpy(), CENTRED), strict=True):
        np.testing.assert_allclose(a.regression, b.regression, atol=1e-6)
        assert np.array_equal(a.ids, b.ids) and np.array_equal(a.areas, b.areas)


@pytest.mark.parametrize("settings", [IMAGE, CENTRED])
def test_extreme_scores_are_clipped_and_what_is_no_number_counts_nothing(settings):
    log_probs = np.full((NUM_CLASSES, HEIGHT, WIDTH), -1.0, np.float32)
    log_probs[0, :, : WIDTH // 2], log_probs[0, 0, 0] = -1e30, np.nan
    log_probs[1, :, WIDTH // 2 :] = -np.inf
    found = reduced(log_probs, settings)[1]
    assert np.isfinite(found.regression).all()
    if settings.form == "image":
        pixels = [HEIGHT * WIDTH // 2, HEIGHT * WIDTH // 2 - 1]
        assert found.regression.sum() == pytest.approx(MAX_MARGIN * (pixels[0] - pixels[1]) / sum([*pixels, 1]))


def test_without_scores_er_is_zero_and_areas_remain():
    for given_scores, found in zip(
        reduced(random_scores(5), CENTRED),
        reduce_scores(None, MAP, NUM_SUPERPIXELS, BOXES, CLASS_IDS, CENTRED),
        strict=True,
    ):
        assert found.constant == 0 and not found.regression.any()
        assert np.array_equal(found.dense(NUM_SUPERPIXELS)[1], given_scores.dense(NUM_SUPERPIXELS)[1])


def test_a_box_outside_the_image_and_no_box():
    outside = np.array([[WIDTH + 1, 0, WIDTH + 5, 5]], np.float32)
    for settings in (IMAGE, CLIPPED, CENTRED):
        (found,) = reduce_scores(
            torch.zeros(2, HEIGHT, WIDTH), MAP, NUM_SUPERPIXELS, outside, np.array([1], np.int32), settings
        )
        assert not found.areas.any() and not found.regression.any()
        none = np.empty((0, 4), np.float32), np.empty(0, np.int32)
        assert reduce_scores(torch.zeros(1, HEIGHT, WIDTH), MAP, NUM_SUPERPIXELS, *none, settings) == []
