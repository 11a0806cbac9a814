"""Upsampling by matrix products, which GPUs use, is bilinear interpolation with its gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from boxsup_dist.model.grids import bilinear_products


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("cells, size", [((3, 5), (17, 33)), ((4, 4), (32, 32)), ((1, 2), (1, 9))])
def test_products_are_bilinear_interpolation(cells: tuple[int, int], size: tuple[int, int], align_corners: bool):
    torch.manual_seed(0)
    ours = torch.randn(2, 3, *cells).to(memory_format=torch.channels_last).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    found = bilinear_products(ours, list(size), align_corners=align_corners)
    expected = F.interpolate(theirs, size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(expected)
    found.backward(towards)
    expected.backward(towards)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_autocast_does_not_round_the_products():
    scores = torch.randn(1, 2, 3, 3)
    expected = bilinear_products(scores, [9, 9], align_corners=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = bilinear_products(scores, [9, 9], align_corners=True)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
