"""Heads between backbone and score layer: LargeFOV (DeepLab, Chen et al. 2015) and ASPP (DeepLab-v2).

Neither head normalises, so its output depends on the image alone. The dilations cover the same field of view in pixels
at output strides 8 and 16; the published dilation of LargeFOV is 12 cells of 8 pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LargeFov(nn.Module):
    """A dilated 3x3 convolution (fc6) and a 1x1 convolution (fc7), each with ReLU, then dropout.

    `published` adds two layers that the VGG-16 network has: a 3x3 average pool before fc6, and dropout after it.
    """

    def __init__(self, in_channels: int, channels: int, output_stride: int, dropout: float, published: bool) -> None:
        super().__init__()
        dilation = 96 // output_stride
        self.smooth = nn.AvgPool2d(3, stride=1, padding=1) if published else nn.Identity()
        self.fc6 = nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation)
        self.drop6 = nn.Dropout(dropout) if published else nn.Identity()
        self.fc7 = nn.Conv2d(channels, channels, 1)
        self.drop7 = nn.Dropout(dropout)
        init_convolutions(self)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, channels, h, w)."""
        hidden = self.drop6(F.relu(self.fc6(self.smooth(features))))
        out: Tensor = self.drop7(F.relu(self.fc7(hidden)))
        return out


class Aspp(nn.Module):
    """Atrous spatial pyramid: a 1x1 and three dilated 3x3 convolutions side by side, joined by a 1x1 convolution.

    DeepLab-v3 also has an image-level pool. This head leaves it out, because its result would depend on the padding.
    """

    def __init__(self, in_channels: int, channels: int, output_stride: int, dropout: float) -> None:
        super().__init__()
        branches = [nn.Conv2d(in_channels, channels, 1)]
        for dilation in (48 // output_stride, 96 // output_stride, 144 // output_stride):
            branches.append(nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation))
        self.branches = nn.ModuleList(branches)
        self.join = nn.Conv2d(channels * len(branches), channels, 1)
        self.drop = nn.Dropout(dropout)
        init_convolutions(self)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, channels, h, w)."""
        joined = torch.cat([F.relu(branch(features)) for branch in self.branches], dim=1)
        out: Tensor = self.drop(F.relu(self.join(joined)))
        return out


def zero_score(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 score layer that starts at zero."""
    layer = nn.Conv2d(channels, num_classes, 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def init_convolutions(module: nn.Module) -> None:
    """He initialisation and zero biases in every convolution of `module`, from torch's global generator."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
