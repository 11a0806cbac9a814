"""The summed cross entropy and the expected labels against loops over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from boxsup_dist.data.painting import CERTAIN, PRIOR_STEPS
from boxsup_dist.data.schema import IGNORE_INDEX
from boxsup_dist.model.loss import (
    EM_BACKGROUND_BIAS,
    EM_FOREGROUND_BIAS,
    LEAST_PRIOR,
    expected_labels,
    segmentation_loss,
)


def loop(logits: torch.Tensor, label_maps: torch.Tensor, weights: list[float]) -> tuple[float, float]:
    total, count = 0.0, 0.0
    for n, maps in enumerate(label_maps.tolist()):
        for i, row in enumerate(maps):
            for j, label in enumerate(row):
                if label != IGNORE_INDEX:
                    scores = logits[n, :, i, j].double().tolist()
                    total += weights[label] * (math.log(sum(math.exp(s) for s in scores)) - scores[label])
                    count += weights[label]
    return total, count


@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 3.25]])
def test_equals_the_loop_and_has_finite_gradients(ignored, memory_format, dtype, weights):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 7, generator=generator).to(memory_format=memory_format).requires_grad_()
    labels = torch.randint(0, 4, (2, 5, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORE_INDEX
    class_weights = None if weights is None else torch.tensor(weights)
    loss_sum, weight_sum = segmentation_loss(logits, labels.to(dtype), class_weights)
    expected, weight = loop(logits.detach(), labels, weights or [1.0] * 4)
    assert weight_sum.item() == weight
    assert loss_sum.item() == pytest.approx(expected, rel=1e-5)
    loss_sum.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad.abs().sum(1) == 0).equal(labels == IGNORE_INDEX)


def test_gradients_of_parts_add_up_to_that_of_the_whole():
    """What data parallelism relies on: sums over ranks, divided once."""
    logits = torch.randn(4, 3, 6, 6, requires_grad=True)
    labels = torch.randint(0, 3, (4, 6, 6))
    labels[0] = IGNORE_INDEX
    labels[1, :3] = IGNORE_INDEX
    whole, count = segmentation_loss(logits, labels)
    (expected,) = torch.autograd.grad(whole / count, logits)
    parts = [segmentation_loss(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
    assert sum(part[1] for part in parts) == count
    (found,) = torch.autograd.grad(sum(part[0] for part in parts) / count, logits)
    assert torch.allclose(found, expected, atol=1e-7)


def test_sums_in_float32_under_autocast():
    logits = torch.randn(1, 3, 64, 64).bfloat16()
    labels = torch.randint(0, 3, (1, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        loss_sum, _ = segmentation_loss(logits, labels)
    assert loss_sum.dtype == torch.float32
    assert loss_sum.item() == pytest.approx(segmentation_loss(logits.float(), labels)[0].item(), rel=1e-6)


def test_expected_labels_are_the_boxes_class_or_background_whichever_scores_higher():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 4, 5, 6, generator=generator)
    boxes = torch.randint(0, 4, (2, 5, 6), generator=generator).to(torch.uint8)
    boxes[0, 0, 0] = 255
    found = expected_labels(logits, boxes)
    assert found.dtype == boxes.dtype and found[0, 0, 0] == 255
    for (n, y, x), box in np.ndenumerate(boxes.numpy()):
        if box not in (0, 255):
            scores = logits[n, :, y, x]
            expected = box if scores[box] + EM_FOREGROUND_BIAS >= scores[0] + EM_BACKGROUND_BIAS else 0
            assert found[n, y, x] == expected
        elif box == 0:
            assert found[n, y, x] == 0
    assert 0 < (found == 0).sum() < found.numel() and (found != boxes).any()


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 3.25]])
def test_a_doubtful_pixel_counts_as_its_label_and_as_background_by_prior_and_network(weights):
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(2, 4, 3, 5, generator=generator)).requires_grad_()
    labels = torch.randint(1, 4, (2, 3, 5), generator=generator)
    labels[0, 0] = IGNORE_INDEX
    priors = torch.randint(0, PRIOR_STEPS + 1, labels.shape, generator=generator).to(torch.uint8)
    priors[1, :2] = priors[0, 0] = CERTAIN
    class_weights = None if weights is None else torch.tensor(weights)
    loss_sum, weight_sum = segmentation_loss(logits, labels, class_weights, priors)
    w = weights or [1.0] * 4
    expected, weight = 0.0, 0.0
    for (n, i, j), label in np.ndenumerate(labels.numpy()):
        if label == IGNORE_INDEX:
            continue
        scores = logits[n, :, i, j].detach().double().tolist()
        costs = [math.log(sum(map(math.exp, scores))) - score for score in scores]
        share = 1.0
        if priors[n, i, j] != CERTAIN:
            belief = min(max(float(priors[n, i, j]) / PRIOR_STEPS, LEAST_PRIOR), 1 - LEAST_PRIOR)
            odds = belief / (1 - belief) * math.exp(scores[label] - scores[0])
            share = odds / (1 + odds)
        expected += share * w[label] * costs[label] + (1 - share) * w[0] * costs[0]
        weight += share * w[label] + (1 - share) * w[0]
    assert weight_sum.item() == pytest.approx(weight, rel=1e-5)
    assert loss_sum.item() == pytest.approx(expected, rel=1e-5)
    # The shares are targets: the gradient of a pixel is w * (softmax - target), not through them.
    loss_sum.backward()
    assert not weight_sum.requires_grad
    assert logits.grad.sum(1).abs().max() < 1e-5 and (logits.grad[0, :, 0] == 0).all()


def test_certain_labels_need_no_prior():
    logits, labels = torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 6, 6))
    certain = torch.full(labels.shape, CERTAIN, dtype=torch.uint8)
    assert segmentation_loss(logits, labels, None, certain) == segmentation_loss(logits, labels)
