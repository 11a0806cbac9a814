"""Grids: where the cells of a score map lie on the image, so that scores can be brought back to its pixels.

    corners: cell i is centred on pixel s * i (odd kernels, padded by half), s * k + 1 pixels give k + 1 cells
    patches: cell i covers pixels s * i to s * i + s - 1 (ConvNeXt), s * k pixels give k cells
    fcn:     the grid that 100 pixels of padding and the unpadded 7x7 window of fc6 give (Long et al. 2015), see FcnGrid

Images of any size are padded with zeros, which is the mean colour after normalisation; the padding is cut off the
upsampled scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Grid(Protocol):
    """Pads images, and upsamples the scores of padded images."""

    def pad(self, values: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), padded to the size that the backbone takes."""

    def upsample(self, score_map: Tensor, height: int, width: int) -> Tensor:
        """Score map (N, C, h, w) to float32 logits (N, C, height, width), bilinear."""


@dataclass(frozen=True)
class CellGrid:
    """The grid of corners or of patches, of this stride.

    Corners are padded at the right and bottom to a multiple of the stride plus one, and upsampled with
    align_corners=True, which puts cell i on pixel s * i; crops of s * k + 1 pixels need no padding. (TensorFlow's
    "same" padding shifts by nearly half a cell at multiples of s, and by nothing at these sizes.) Patches are padded to
    a multiple of the stride and upsampled with align_corners=False; training absorbs the shift of their dilated even
    kernels.
    """

    stride: int
    patches: bool

    def pad(self, values: Tensor) -> Tensor:
        """As Grid; h = ceil((H - 1) / s) + 1 cells for corners, ceil(H / s) for patches."""
        extra = 0 if self.patches else 1
        # No remainder here: the layers of the network halve the size again and again, and this form stays short when
        # sizes are symbolic (export).
        down, right = ((size - extra + self.stride - 1) // self.stride * self.stride + extra - size
                       for size in values.shape[2:])  # fmt: skip
        return F.pad(values, (0, right, 0, down))

    def upsample(self, score_map: Tensor, height: int, width: int) -> Tensor:
        """As Grid."""
        extra = 0 if self.patches else 1
        size = [(cells - extra) * self.stride + extra for cells in score_map.shape[2:]]
        full = bilinear(score_map.float(), size, align_corners=not self.patches)
        return full[:, :, :height, :width]


@dataclass(frozen=True)
class FcnGrid:
    """The grid of the released FCN-32s, 16s and 8s: 100 pixels of padding in conv1_1, which itself pads by 1.

    The padding lets any image, from 1x1, fill a 7x7 window of fc6. Cell i of fc6 is centred on pixel 32 i + 12.5 (pool
    of 32: + 15.5, three cells of window: + 96, padding: - 99); the cells of the fused scores on 16 i - 11.5 and
    8 i - 23.5. The final deconvolution, a bilinear kernel of 2 s cropped by 19, 27 and 31 pixels, has its cells at the
    same places. It equals upsampling with align_corners=False after a border of one cell of zeros, which adds s / 2
    pixels: a crop of 35 at every stride.
    """

    stride: int

    def pad(self, values: Tensor) -> Tensor:
        """As Grid; h = ceil((H + 198) / 32) - 6 cells of fc6, doubled and 2 more for each skip fused."""
        return F.pad(values, (99, 99, 99, 99))

    def upsample(self, score_map: Tensor, height: int, width: int) -> Tensor:
        """As Grid; scores fade outside the cells of fc6 (up to 13 pixels from a border), as in the deconvolution."""
        bordered = F.pad(score_map.float(), (1, 1, 1, 1))
        full = bilinear(bordered, [cells * self.stride for cells in bordered.shape[2:]], align_corners=False)
        return full[:, :, 35 : 35 + height, 35 : 35 + width]


def bilinear(scores: Tensor, size: list[int], *, align_corners: bool) -> Tensor:
    """Upsample float32 scores (N, C, h, w) to `size`. A GPU's gradients have the same bits in every run."""
    if scores.is_cuda:
        return bilinear_products(scores, size, align_corners=align_corners)
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=align_corners)


def bilinear_products(scores: Tensor, size: list[int], *, align_corners: bool) -> Tensor:
    """`bilinear` as two products with matrices of weights; the gradient of F.interpolate on a GPU adds atomically."""
    rows, columns = (
        F.interpolate(torch.eye(cells, device=scores.device)[None], length, mode="linear", align_corners=align_corners)[
            0
        ]
        for cells, length in zip(scores.shape[2:], size, strict=True)
    )
    with torch.autocast(scores.device.type, enabled=False):
        return rows.T @ (scores @ columns)
