"""The segmentation loss, cross entropy summed over valid pixels, and labels that the network expects inside boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX

# Papandreou, Chen, Murphy, Yuille, ICCV 2015 (WSSL), section 3.2: added to the scores of an image's own classes.
EM_BACKGROUND_BIAS = 3.0
EM_FOREGROUND_BIAS = 5.0


def segmentation_loss(logits: Tensor, label_maps: Tensor, class_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum over valid pixels of -w log p(label), and the sum of their weights w.

    logits (N, C, H, W); label_maps (N, H, W) integer, 0..C-1 or IGNORE_INDEX; class_weights float32 (C,), w of a pixel
    by its label, None for 1. Returns two float32 scalars; the first carries the gradient. Sums are taken in float32
    also under autocast; without a valid pixel both are 0, with a zero gradient. The loss of a global batch is the sum
    over ranks of the first divided by that of the second, once.
    """
    labels = label_maps.reshape(-1).long()
    # Pixels as rows: on GPUs the 2-d form of the loss has no deterministic kernel, this one has. The permutation is a
    # view of channels-last logits.
    rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    is_valid = labels != IGNORE_INDEX
    weights = is_valid.float() if class_weights is None else class_weights[labels.where(is_valid, 0)] * is_valid
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.cross_entropy(rows.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
        return (losses * weights).sum(), weights.sum()


def expected_labels(logits: Tensor, box_maps: Tensor) -> Tensor:
    """E-step of WSSL's Bbox-EM-Fixed: in a box its class or background, whichever the network prefers after the biases.

    logits (N, C, H, W); box_maps (N, H, W) integer: the class of the front box at each pixel, 0 outside every box,
    IGNORE_INDEX kept. Returns label maps like box_maps. The published E-step also lets a class win that the image
    lacks, if its score is higher by the bias than all others; the boxes rule it out, so it is not looked at here.
    """
    classes = torch.where(box_maps == IGNORE_INDEX, BACKGROUND, box_maps).long()
    foreground = logits.gather(1, classes[:, None])[:, 0] + EM_FOREGROUND_BIAS
    is_background = logits[:, BACKGROUND] + EM_BACKGROUND_BIAS > foreground
    return torch.where(is_background & (box_maps != IGNORE_INDEX), BACKGROUND, box_maps)
