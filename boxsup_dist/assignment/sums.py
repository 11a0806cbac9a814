"""The reduction of an image's score maps to what the costs of its boxes need: one number per superpixel and box.

It runs where the scores are, on a GPU too, and is exact: the margins are rounded to fixed-point integers before they
are added, so the sums do not depend on the order of addition, which differs between devices. `cost.py` takes the sums
and never sees a pixel.

The fixed point. A margin d is clipped to +-MAX_MARGIN and rounded to a multiple of 2**-bits, where `bits` follows from
the number of pixels alone: n * MAX_MARGIN * 2**bits < 2**63, so no sum can overflow. An image of 500 x 375 pixels has
38 bits, the largest one (2**26 pixels) 29. Er is a mean over pixels, so it is off by at most half a step, 2**-39 =
2e-12 and 1e-9, and costs are compared to COST_DIGITS = 9 digits. Mostly it is not off at all: a float32 log-probability
below -2**(23 - bits), which is -3e-5 with 38 bits, has no digit that is lost.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boxsup_dist.config import AssignmentSettings, CostForm
from boxsup_dist.data.painting import pixel_box
from boxsup_dist.data.schema import BACKGROUND

MAX_MARGIN = 128.0  # no float32 probability lies further below 1: the smallest one is exp(-104)


class BoxSums(NamedTuple):
    """What the costs of one box need of the image's pixels: Er(S) = constant + sum over S of `regression`.

    Superpixels that do not count for the box are left out.
    """

    ids: NDArray[np.uint16]  # (n,), ascending
    areas: NDArray[np.int32]  # (n,), pixels of the superpixel inside the box
    regression: NDArray[np.float64]  # (n,), the superpixel's part of Er
    constant: float  # part of Er that all segments share

    def dense(self, num_superpixels: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """`regression` and `areas` of every superpixel, (S,) each; 0 for those that do not count."""
        regression, areas = np.zeros(num_superpixels), np.zeros(num_superpixels, np.int64)
        regression[self.ids], areas[self.ids] = self.regression, self.areas
        return regression, areas


def scored_classes(class_ids: NDArray[np.int32]) -> list[int]:
    """The classes whose scores the boxes of an image need: background, then those of the boxes, ascending."""
    return [BACKGROUND, *sorted(set(class_ids.tolist()) - {BACKGROUND})]


def reduce_scores(
    scores: Tensor | None,
    superpixels: NDArray[np.uint16],
    num_superpixels: int,
    boxes_xyxy: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    settings: AssignmentSettings,
) -> list[BoxSums]:
    """Reduce the scores of an image for each of its boxes.

    Args:
        scores: (L, H, W), log-probabilities of the L classes of `scored_classes`, on any device. Form "centred" takes
            logits as well, because only their differences count. None (warm-up) sets Er to 0.
        superpixels: (H, W), ids 0..S-1.
        num_superpixels: S.
        boxes_xyxy: (K, 4).
        class_ids: (K,), 1..C-1.
        settings: The form of the cost, its margin and limit.

    Returns:
        K sums; equal on all devices for equal scores.
    """
    height, width = superpixels.shape
    windows = [pixel_box(box, height, width) for box in boxes_xyxy.astype(np.float64)]
    all_areas = [_areas(superpixels, window, num_superpixels) for window in windows]
    if scores is None or not windows:
        return [_box_sums(areas, areas > 0, np.zeros(num_superpixels), 0.0) for areas in all_areas]
    reaches = windows
    if settings.form == "image":
        margin = settings.box_margin
        reaches = [pixel_box(box, height, width, margin=margin) for box in boxes_xyxy.astype(np.float64)]
    bits = fixed_point_bits(height * width)
    limit = MAX_MARGIN if settings.logit_limit is None else min(settings.logit_limit, MAX_MARGIN)
    classes, ids = scored_classes(class_ids), torch.from_numpy(superpixels.astype(np.int32)).to(scores.device)
    sums = torch.zeros((len(windows) + 1, num_superpixels), dtype=torch.int64, device=scores.device)
    for k, (x0, y0, x1, y1) in enumerate(reaches):
        background, own = (scores[j, y0:y1, x0:x1] for j in (0, classes.index(int(class_ids[k]))))
        # In float64, because float32 rounds the difference of two log-probabilities, and that would decide near ties.
        fixed = _fixed_point(background.double() - own, limit, bits)
        sums[k].index_add_(0, ids[y0:y1, x0:x1].reshape(-1), fixed.reshape(-1))
    if settings.form == "image":
        sums[-1, 0] = _fixed_point(-scores[0].double(), MAX_MARGIN, bits).sum()
    exact = sums.cpu().numpy()  # one transfer
    constant = float(exact[-1, 0]) / 2**bits
    return [
        _regression(settings.form, margins / 2**bits, areas, constant, height * width)
        for margins, areas in zip(exact[:-1], all_areas, strict=True)
    ]


def fixed_point_bits(num_pixels: int) -> int:
    """Binary digits after the point with which the margins of this many pixels cannot overflow 63 bits."""
    return 63 - (int(MAX_MARGIN) - 1).bit_length() - num_pixels.bit_length()


def _fixed_point(values: Tensor, limit: float, bits: int) -> Tensor:
    """float64 values, clipped to +-limit, as int64 multiples of 2**-bits; 0 for what is not a number."""
    return values.nan_to_num_(nan=0.0).clamp_(-limit, limit).mul_(2.0**bits).round_().long()


def _areas(superpixels: NDArray[np.uint16], window: tuple[int, int, int, int], count: int) -> NDArray[np.intp]:
    """Pixels that every superpixel has inside a window, (S,)."""
    x0, y0, x1, y1 = window
    return np.bincount(superpixels[y0:y1, x0:x1].ravel(), minlength=count)


def _regression(
    form: CostForm, margins: NDArray[np.float64], areas: NDArray[np.intp], constant: float, num_pixels: int
) -> BoxSums:
    """The sums of a box from the margins (S,) of its superpixels; the module cost.py defines both forms."""
    if form == "image":
        counts = (areas > 0) | (margins != 0)
        return _box_sums(areas, counts, margins / num_pixels, constant / num_pixels)
    size = max(int(areas.sum()), 1)
    return _box_sums(areas, areas > 0, (margins - margins.sum() / size * areas) / size, 0.0)


def _box_sums(
    areas: NDArray[np.intp], counts: NDArray[np.bool_], regression: NDArray[np.float64], constant: float
) -> BoxSums:
    ids = np.flatnonzero(counts)
    return BoxSums(ids.astype(np.uint16), areas[ids].astype(np.int32), regression[ids], constant)


def select_scores(log_probs: NDArray[np.float32], class_ids: NDArray[np.int32]) -> Tensor:
    """The scores that `reduce_scores` takes, of log-probabilities (C, H, W) of all classes on the CPU."""
    return torch.from_numpy(log_probs[scored_classes(class_ids)])
