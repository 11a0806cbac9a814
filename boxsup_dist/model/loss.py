"""The segmentation loss: cross entropy summed over valid pixels, with their number, so that ranks can add both up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from boxsup_dist.schema import IGNORE_INDEX


def segmentation_loss(logits: Tensor, label_maps: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over valid pixels of -log p(label), and the number of valid pixels.

    logits (N, C, H, W); label_maps (N, H, W) integer, 0..C-1 or IGNORE_INDEX. Returns a float32 scalar that carries the
    gradient and an int64 scalar. The sum is taken in float32 also under autocast; without a valid pixel it is 0 with a
    zero gradient. The loss of a global batch is the sum over ranks of the first divided by that of the second, once.
    """
    labels = label_maps.reshape(-1)
    # Pixels as rows: on GPUs the 2-d form of the loss has no deterministic kernel, this one has. The permutation is a
    # view of channels-last logits.
    rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.cross_entropy(rows.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
        return losses.sum(), (labels != IGNORE_INDEX).sum()
