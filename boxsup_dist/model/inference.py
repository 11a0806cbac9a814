"""Prediction of one image: float32 log-probabilities at image size, the same on every machine of a kind.

One image at a time: its scores never depend on which other images an actor was given.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from boxsup_dist.config import TILE_GRID_PX, PredictionSettings
from boxsup_dist.model.crf import MIN_PROB, SETTLED, LikelyScores, crf_settings, dense_crf
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
def average_log_probs(network: SegmentationNetwork, image: np.ndarray, settings: PredictionSettings) -> np.ndarray:
    """Log-probabilities float32 (C, H, W) of one image, uint8 RGB (H, W, 3), before the CRF.

    The logits of all scales and mirrorings are averaged at image size (the paper's BoxSup+). Plain settings give those
    of predict_log_probs, bit by bit. The network must be in evaluation mode. ValueError as predict_log_probs.
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
        scores = _view_logits(network, view.flip(3) if flip else view, settings.tile_px)
        scores = scores.flip(3) if flip else scores
        if scale != 1.0:
            scores = F.interpolate(scores, (height, width), mode="bilinear")
        logits = logits + scores / len(views)
    return F.log_softmax(logits, dim=1)[0].contiguous().cpu().numpy()


def predict_label_map(network: SegmentationNetwork, image: np.ndarray, settings: PredictionSettings) -> np.ndarray:
    """Label map, integers (H, W), of one image, uint8 RGB (H, W, 3), with all test-time options.

    ValueError as average_log_probs, SettingError for an unknown CRF.
    """
    log_probs = average_log_probs(network, image, settings)
    if settings.crf is None:
        return log_probs.argmax(0)
    return LikelyScores.of(log_probs).label_map(image, crf_settings(settings.crf))


def predict_probs(network: SegmentationNetwork, image: np.ndarray, settings: PredictionSettings) -> np.ndarray:
    """Probabilities float32 (C, H, W) of one image, as predict_label_map; labels that the CRF leaves out have 0."""
    log_probs = average_log_probs(network, image, settings)
    if settings.crf is None:
        return np.exp(log_probs)
    return dense_crf(image, log_probs, crf_settings(settings.crf), min_prob=MIN_PROB, settled=SETTLED)


def _view_logits(network: SegmentationNetwork, view: Tensor, tile_px: int | None) -> Tensor:
    """Logits float32 (1, C, H, W) of one view (1, 3, H, W), in tiles where it is larger than one.

    Overlapping tiles begin on multiples of TILE_GRID_PX, where their cells are those of the whole image, and overlap by
    half of tile_px or more. A tile's weight is 0 up to an eighth of tile_px from its borders inside the image, then
    rises linearly to 1. So a pixel's logits are the whole image's as far as what the network sees of it reaches no
    further than the pixel's distance, at least an eighth of tile_px, to the borders of the tiles that count for it.
    They are approximate for a network that sees further, as LargeFOV does with usual tiles: 100 pixels and more.
    """
    height, width = view.shape[2:]
    if tile_px is None or max(height, width) <= tile_px:
        return network.upsample(network.score_map(view), height, width)
    total = torch.zeros((1, network.spec.num_classes, height, width), device=view.device)
    rows, columns = _tiles(height, tile_px, view.device), _tiles(width, tile_px, view.device)
    for y, row_weights in rows:
        for x, column_weights in columns:
            tile = view[:, :, y, x]
            logits = network.upsample(network.score_map(tile), *tile.shape[2:])
            total[:, :, y, x] += logits * row_weights[:, None] * column_weights
    return total


def _tiles(length: int, tile_px: int, device: torch.device | str) -> list[tuple[slice, Tensor]]:
    """Range of each tile along a side of `length` pixels, and its pixels' weights, which sum up to 1 at every pixel."""
    step = tile_px // (2 * TILE_GRID_PX) * TILE_GRID_PX
    last = max(0, -(-(length - tile_px) // TILE_GRID_PX) * TILE_GRID_PX)
    overlap, margin = tile_px - step, tile_px // 8
    total = torch.zeros(length, device=device)
    tiles = []
    for start in [*range(0, last, step), last]:
        stop = min(start + tile_px, length)
        position = torch.arange(start, stop, device=device)
        weights = torch.ones(stop - start, device=device)
        if start > 0:
            weights = weights * ((position - start + 0.5 - margin) / (overlap - 2 * margin)).clamp(0, 1)
        if stop < length:
            weights = weights * ((stop - position - 0.5 - margin) / (overlap - 2 * margin)).clamp(0, 1)
        total[start:stop] += weights
        tiles.append((slice(start, stop), weights))
    return [(where, weights / total[where]) for where, weights in tiles]
