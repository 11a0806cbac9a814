"""Prediction of one image: float32 log-probabilities at image size, the same on every machine of a kind.

One image at a time: its scores never depend on which other images an actor was given.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from boxsup_dist.config import PredictionSettings
from boxsup_dist.model.crf import crf_settings, dense_crf
from boxsup_dist.model.networks import SegmentationNetwork


def set_deterministic_threads(num_threads: int) -> None:
    """Fix this process's CPU threads and choose deterministic kernels; sums depend on the number of threads.

    On GPUs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8 must be set as well before the first use.
    """
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def image_to_batch(image: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 RGB (H, W, 3) as a batch (1, 3, H, W), which is channels-last in memory. ValueError for another array."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an image is uint8 (H, W, 3) without an empty side, found {image.dtype} {image.shape}")
    writable = image if image.flags.writeable and image.flags.c_contiguous else image.copy()
    return torch.from_numpy(writable).to(device)[None].permute(0, 3, 1, 2)


@torch.inference_mode()
def predict_log_probs(
    network: SegmentationNetwork,
    image: np.ndarray,
    device: torch.device | str = "cpu",
    *,
    autocast_dtype: torch.dtype | None = None,
) -> np.ndarray:
    """Log-probabilities float32 (C, H, W) of one image, uint8 RGB (H, W, 3) of any size from 1x1.

    The network must be in evaluation mode and on `device`. `autocast_dtype` (bfloat16 or float16) runs it in mixed
    precision; upsampling and softmax stay in float32. ValueError if the network is in training mode or the image unfit.
    """
    if network.training:
        raise ValueError("the network is in training mode: call network.eval() before predicting")
    height, width = image.shape[:2]
    with torch.autocast(torch.device(device).type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        scores = network.score_map(image_to_batch(image, device))
    logits = network.upsample(scores, height, width)
    return F.log_softmax(logits, dim=1)[0].contiguous().cpu().numpy()


@torch.inference_mode()
def predict_probs(network: SegmentationNetwork, image: np.ndarray, settings: PredictionSettings) -> np.ndarray:
    """Probabilities float32 (C, H, W) of one image, uint8 RGB (H, W, 3), with the test-time options.

    The logits of all scales and mirrorings are averaged at image size (the paper's BoxSup+), then the CRF decides.
    The network must be in evaluation mode. ValueError as predict_log_probs, SettingError for an unknown CRF.
    """
    if network.training:
        raise ValueError("the network is in training mode: call network.eval() before predicting")
    height, width = image.shape[:2]
    batch = image_to_batch(image, network.device)
    views = [(scale, flip) for scale in settings.scales for flip in ((False, True) if settings.flip else (False,))]
    logits = torch.zeros((), device=network.device)
    for scale, flip in views:
        view = batch
        if scale != 1.0:
            size = (max(1, round(scale * height)), max(1, round(scale * width)))
            view = F.interpolate(batch.float(), size, mode="bilinear", antialias=scale < 1).clamp(0, 255)
        scores = network.score_map(view.flip(3) if flip else view)
        scores = network.upsample(scores, *view.shape[2:])
        scores = scores.flip(3) if flip else scores
        if scale != 1.0:
            scores = F.interpolate(scores, (height, width), mode="bilinear")
        logits = logits + scores / len(views)
    log_probs = F.log_softmax(logits, dim=1)[0].contiguous().cpu().numpy()
    if settings.crf is None:
        return np.exp(log_probs)
    return dense_crf(image, log_probs, crf_settings(settings.crf))
