"""The segmentation loss (cross entropy summed over valid pixels), and WSSL's labels from the network's own scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from boxsup_dist.data.painting import CERTAIN, PRIOR_STEPS
from boxsup_dist.data.schema import BACKGROUND, IGNORE_INDEX

# Papandreou, Chen, Murphy, Yuille, ICCV 2015 (WSSL), section 3.2: added to the scores of an image's own classes.
EM_BACKGROUND_BIAS = 3.0
EM_FOREGROUND_BIAS = 5.0
LEAST_PRIOR = (
    0.01  # of a doubtful pixel's label, and of background: no prior is so sure that the network cannot overrule
)


def segmentation_loss(
    logits: Tensor, label_maps: Tensor, class_weights: Tensor | None = None, priors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over valid pixels of -w log p(label), and the sum of their weights w.

    The loss of a global batch is the sum of the first over all ranks, divided once by the sum of the second.

    A doubtful pixel counts as both, its label with the share q and background with 1 - q. This is the E-step of EM: the
    odds of q are those of the prior times p(label) / p(background) of the network, which has no gradient here.

    Args:
        logits: (N, C, H, W).
        label_maps: Integers (N, H, W), 0..C-1 or IGNORE_INDEX.
        class_weights: float32 (C,): w of a pixel by its label. None: 1.
        priors: uint8 (N, H, W), as `painting.Prior.prior`; None: no pixel is doubtful.

    Returns:
        Two float32 scalars, also under autocast; the first carries the gradient. Without a valid pixel both are 0, with
        a zero gradient.
    """
    labels = label_maps.reshape(-1).long()
    # Pixels as rows: on GPUs this form of the loss has a deterministic kernel, the 2-d form has none. The permutation
    # is a view of channels-last logits.
    rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    is_valid = labels != IGNORE_INDEX
    weights = is_valid.float() if class_weights is None else class_weights[labels.where(is_valid, 0)] * is_valid
    with torch.autocast(logits.device.type, enabled=False):
        rows = rows.float()
        log_probs = F.log_softmax(rows, dim=1)
        losses = F.nll_loss(log_probs, labels, ignore_index=IGNORE_INDEX, reduction="none")
        if priors is None:
            return (losses * weights).sum(), weights.sum()
        share = _share_of_label(rows.detach(), labels, priors.reshape(-1))
        others = -log_probs[:, BACKGROUND]
        other_weight = 1.0 if class_weights is None else class_weights[BACKGROUND]
        weights, other_weights = weights * share, other_weight * (1 - share) * is_valid
        return (losses * weights + others * other_weights).sum(), (weights + other_weights).sum()


def _share_of_label(rows: Tensor, labels: Tensor, priors: Tensor) -> Tensor:
    """The E-step of doubtful pixels: the share (n,) of each pixel that its label gets; 1 where the label is certain."""
    classes = labels.where(labels != IGNORE_INDEX, BACKGROUND)
    prior = (priors.float() / PRIOR_STEPS).clamp(LEAST_PRIOR, 1 - LEAST_PRIOR)
    log_odds = torch.logit(prior) + rows.gather(1, classes[:, None])[:, 0] - rows[:, BACKGROUND]
    return torch.where(priors == CERTAIN, 1.0, torch.sigmoid(log_odds))


def expected_labels(logits: Tensor, box_maps: Tensor) -> Tensor:
    """E-step of WSSL's Bbox-EM-Fixed: in a box its class or background, whichever scores higher with the biases.

    The published E-step also allows a class that the image lacks, if its score exceeds all others by the bias. The
    boxes rule such a class out, so it is ignored here.

    Args:
        logits: (N, C, H, W).
        box_maps: Integers (N, H, W): the class of the front box at each pixel, 0 outside every box, or IGNORE_INDEX.

    Returns:
        Label maps like `box_maps`; IGNORE_INDEX stays.
    """
    classes = torch.where(box_maps == IGNORE_INDEX, BACKGROUND, box_maps).long()
    foreground = logits.gather(1, classes[:, None])[:, 0] + EM_FOREGROUND_BIAS
    is_background = logits[:, BACKGROUND] + EM_BACKGROUND_BIAS > foreground
    return torch.where(is_background & (box_maps != IGNORE_INDEX), BACKGROUND, box_maps)
