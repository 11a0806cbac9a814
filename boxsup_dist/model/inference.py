"""Prediction of images: float32 scores at image size.

Images are predicted one at a time, so the scores of an image never depend on the other images of an actor. They are
the same on every machine of one kind. The exception is `class_scores` on a GPU, which predicts images of one size
together: there the last digits depend on the images that it is called with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from boxsup_dist.config import TILE_GRID_PX, PredictionSettings
from boxsup_dist.data.schema import BACKGROUND
from boxsup_dist.model.crf import MIN_PROB, SETTLED, LikelyScores, crf_settings, dense_crf
from boxsup_dist.model.networks import SegmentationNetwork


def image_to_batch(image: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """An RGB image (H, W, 3) as a batch uint8 (1, 3, H, W), channels-last in memory.

    Raises:
        ValueError: `image` has another type or shape, or an empty side.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an image must be uint8 (H, W, 3) without an empty side; found {image.dtype} {image.shape}")
    writable = image if image.flags.writeable and image.flags.c_contiguous else image.copy()
    return torch.from_numpy(writable).to(device)[None].permute(0, 3, 1, 2)


@torch.inference_mode()
def predict_log_probs(
    network: SegmentationNetwork, image: NDArray[np.uint8], device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Log-probabilities of one image.

    Args:
        network: In evaluation mode, on `device`.
        image: RGB (H, W, 3), of any size from 1x1.
        device: Where to compute.

    Returns:
        (C, H, W), on the CPU.

    Raises:
        ValueError: The network is in training mode, or `image` has another type or shape.
    """
    if network.training:
        raise ValueError("the network is in training mode: call network.eval() before predicting")
    height, width = image.shape[:2]
    logits = network.upsample(network.score_map(image_to_batch(image, device)), height, width)
    return _log_softmax(logits)


# Pixels of the images that share a forward pass. A GPU is not busy with one image; 2**21 pixels take 1 GiB in the first
# layers of VGG-16. On a CPU a pass of several images takes as long per image, and more memory.
BATCH_PIXELS = {"cuda": 2**21}


@torch.inference_mode()
def class_scores(
    network: SegmentationNetwork,
    images: Sequence[NDArray[np.uint8]],
    classes: Sequence[Sequence[int]],
    *,
    normalise: bool,
    batch_pixels: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Scores of some classes of images; the scores of one image are there at a time.

    Args:
        network: In evaluation mode.
        images: RGB (H, W, 3), of any size from 1x1.
        classes: For each image, the classes to return.
        normalise: Return log-probabilities over all classes. Else logits: their differences are the same, and only the
            classes that are asked for are brought to the size of the image.
        batch_pixels: Images of one size share forward passes of at most this many pixels, or are alone; None:
            BATCH_PIXELS of the device.

    Yields:
        The index of an image, and float32 (L, H, W) on the network's device; every image once, those of one size
        together.

    Raises:
        ValueError: As predict_log_probs.
    """
    if network.training:
        raise ValueError("the network is in training mode: call network.eval() before predicting")
    device = network.device
    most = BATCH_PIXELS.get(device.type, 0) if batch_pixels is None else batch_pixels
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(index)
    for (height, width, *_), indices in by_size.items():
        count = max(most // (height * width), 1)
        for start in range(0, len(indices), count):
            together = indices[start : start + count]
            score_map = network.score_map(torch.cat([image_to_batch(images[i], device) for i in together]))
            for row, index in zip(score_map.unsqueeze(1), together, strict=True):
                chosen = list(classes[index])
                if normalise:
                    yield index, F.log_softmax(network.upsample(row, height, width), dim=1)[0, chosen]
                else:
                    yield index, network.upsample(row[:, chosen], height, width)[0]


def _log_softmax(logits: Tensor) -> NDArray[np.float32]:
    """Log-probabilities (C, H, W) on the CPU from logits (1, C, H, W)."""
    log_probs: NDArray[np.float32] = F.log_softmax(logits, dim=1)[0].contiguous().cpu().numpy()
    return log_probs


@torch.inference_mode()
def average_log_probs(
    network: SegmentationNetwork, image: NDArray[np.uint8], settings: PredictionSettings
) -> NDArray[np.float32]:
    """Log-probabilities of one image, averaged over scales and mirroring (the paper's BoxSup+), before the CRF.

    `settings.background_logit` is added to the averaged logits.

    Args:
        network: In evaluation mode.
        image: RGB (H, W, 3).
        settings: The default gives the result of predict_log_probs, bit by bit.

    Returns:
        (C, H, W); logits are averaged at image size.

    Raises:
        ValueError: The network is in training mode, or `image` has another type or shape.
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
    if settings.background_logit:
        logits[:, BACKGROUND] += settings.background_logit
    return _log_softmax(logits)


def predict_label_map(
    network: SegmentationNetwork, image: NDArray[np.uint8], settings: PredictionSettings
) -> NDArray[np.integer[Any]]:
    """Label map (H, W) of one image, with all test-time options. Arguments as in `average_log_probs`.

    Raises:
        ValueError: As average_log_probs.
        SettingError: The CRF is unknown.
    """
    log_probs = average_log_probs(network, image, settings)
    if settings.crf is None:
        label_map: NDArray[np.int64] = log_probs.argmax(0)
        return label_map
    return LikelyScores.of(log_probs).label_map(image, crf_settings(settings.crf))


def predict_probs(
    network: SegmentationNetwork, image: NDArray[np.uint8], settings: PredictionSettings
) -> NDArray[np.float32]:
    """Probabilities (C, H, W) of one image, with all test-time options; 0 for labels that the CRF drops.

    Arguments and errors are those of `predict_label_map`.
    """
    log_probs = average_log_probs(network, image, settings)
    if settings.crf is None:
        probs: NDArray[np.float32] = np.exp(log_probs)
        return probs
    return dense_crf(image, log_probs, crf_settings(settings.crf), min_prob=MIN_PROB, settled=SETTLED)


def _view_logits(network: SegmentationNetwork, view: Tensor, tile_px: int | None) -> Tensor:
    """Logits float32 (1, C, H, W) of one view (1, 3, H, W); a view larger than a tile is predicted in tiles.

    Tiles start at multiples of the stride, where their cells are the cells of the whole image, and overlap by at least
    half of tile_px. The weight of a tile is 0 up to an eighth of tile_px from its borders inside the image, then
    rises linearly to 1. So every tile that counts for a pixel has at least tile_px / 8 pixels of image around it: the
    logits equal those of the whole image if the network sees no further. They are approximate otherwise, as for
    LargeFOV with usual tiles: it sees 100 pixels and more.
    """
    height, width = view.shape[2:]
    if tile_px is None or max(height, width) <= tile_px:
        return network.upsample(network.score_map(view), height, width)
    total = torch.zeros((1, network.spec.num_classes, height, width), device=view.device)
    grid_px = TILE_GRID_PX // network.spec.output_stride * network.spec.output_stride  # 28 for patches of 14
    rows, columns = (_tiles(length, tile_px, grid_px, view.device) for length in (height, width))
    for y, row_weights in rows:
        for x, column_weights in columns:
            tile = view[:, :, y, x]
            logits = network.upsample(network.score_map(tile), *tile.shape[2:])
            total[:, :, y, x] += logits * row_weights[:, None] * column_weights
    return total


def _tiles(length: int, tile_px: int, grid_px: int, device: torch.device | str) -> list[tuple[slice, Tensor]]:
    """Range of each tile along a side of `length` pixels, and the weights of its pixels; they add up to 1 per pixel.

    Tiles start at multiples of `grid_px`.
    """
    step = tile_px // (2 * grid_px) * grid_px
    last = max(0, -(-(length - tile_px) // grid_px) * grid_px)
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
