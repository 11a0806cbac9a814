"""Backbones: what they are, and VGG-16 as DeepLab-LargeFOV changes it (`fcn` and `timm_backbones` have the others).

A backbone takes normalised images (N, 3, H, W), padded as its grid says, and gives its deepest features on that grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from boxsup_dist.errors import WeightsError
from boxsup_dist.model.grids import CellGrid, Grid
from boxsup_dist.model.heads import LargeFov, init_convolutions
from boxsup_dist.model.weights import CAFFE_MEAN, Pretrained, fit_into

_VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass(frozen=True)
class Backbone:
    """A feature extractor and what its input and its output look like."""

    module: nn.Module
    out_channels: int
    mean: tuple[float, ...]  # of the input, RGB on 0..255
    std: tuple[float, ...]
    grid: Grid


def vgg16_layers(pools: Sequence[nn.Module], last_dilation: int = 1) -> list[nn.Module]:
    """VGG-16's convolutions and ReLUs in torchvision's numbering, with a pool after each of the five stages.

    Args:
        pools: The five pools.
        last_dilation: Dilation of the convolutions in the last stage.
    """
    layers: list[nn.Module] = []
    in_channels = 3
    for stage, (widths, pool) in enumerate(zip(_VGG16_CHANNELS, pools, strict=True)):
        dilation = last_dilation if stage == 4 else 1
        for channels in widths:
            layers += [nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
            in_channels = channels
        layers.append(pool)
    return layers


def load_vgg16(module: nn.Sequential, pretrained: Pretrained | None, grid: Grid) -> Backbone:
    """VGG-16's layers with pretrained weights, or random ones without.

    Raises:
        WeightsError: The weights do not fit.
    """
    if pretrained:
        fit_into(module, pretrained, unused=("classifier.",), prefix="features.")
    else:
        init_convolutions(module)
    mean = pretrained.mean if pretrained and pretrained.mean else CAFFE_MEAN
    std = pretrained.std if pretrained and pretrained.std else (1.0, 1.0, 1.0)
    return Backbone(module, _VGG16_CHANNELS[-1][-1], mean, std, grid)


def vgg16(pretrained: Pretrained | None) -> Backbone:
    """VGG-16 changed to output stride 8 as published for DeepLab-LargeFOV.

    Pools are 3x3 with padding; the last two have stride 1, and the convolutions between them dilation 2.

    Raises:
        WeightsError: The weights do not fit.
    """
    pools = [nn.MaxPool2d(3, stride=2 if stage < 3 else 1, padding=1) for stage in range(5)]
    module = nn.Sequential(*vgg16_layers(pools, last_dilation=2))
    return load_vgg16(module, pretrained, CellGrid(8, patches=False))


def classifier_as_convolutions(pretrained: Pretrained) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights (4096, 512, 7, 7) and biases of fc6, weights (4096, 4096, 1, 1) and biases of fc7 of VGG-16's classifier.

    Raises:
        WeightsError: The weights have no usable classifier (torchvision's IMAGENET1K_FEATURES has NaN there).
    """
    shapes = {"0.weight": (4096, 512 * 7 * 7), "0.bias": (4096,), "3.weight": (4096, 4096), "3.bias": (4096,)}
    for layer, shape in shapes.items():
        values = pretrained.state.get(f"classifier.{layer}")
        found = None if values is None else tuple(values.shape)
        if values is None or found != shape or not values.isfinite().all():
            raise WeightsError(
                "the weights have no usable classifier of VGG-16, from which fc6 and fc7 start",
                file=pretrained.source,
                field=f"classifier.{layer}",
                value="no such tensor" if values is None else "values that are not finite" if found == shape else found,
                expected="weights with it, such as torchvision:IMAGENET1K_V1, or --network.random-fc",
            )
    fc6, bias6, fc7, bias7 = (pretrained.state[f"classifier.{layer}"] for layer in shapes)
    return fc6.reshape(4096, 512, 7, 7), bias6, fc7.reshape(4096, 4096, 1, 1), bias7


@torch.no_grad()
def init_from_classifier(head: LargeFov, pretrained: Pretrained) -> None:
    """Start fc6 and fc7, of 1024 channels, from VGG-16's classifier.

    It is thinned out as DeepLab does: every 4th unit, 3x3 of the 7x7 places.

    Raises:
        WeightsError: The weights have no usable classifier.
    """
    fc6, bias6, fc7, bias7 = classifier_as_convolutions(pretrained)
    assert head.fc6.bias is not None and head.fc7.bias is not None
    head.fc6.weight.copy_(fc6[::4, :, ::3, ::3])
    head.fc6.bias.copy_(bias6[::4])
    head.fc7.weight.copy_(fc7[::4, ::4])
    head.fc7.bias.copy_(bias7[::4])
