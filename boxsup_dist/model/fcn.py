"""FCN-32s, FCN-16s and FCN-8s on VGG-16 (Long, Shelhamer, Darrell, CVPR 2015), as in the released Caffe models.

    pool3 ──────────────────────────── x 0.0001, score, crop ──┐
    pool4 ──────────── x 0.01, score, crop ──┐                 │
    pool5 ── fc6, fc7 ── score, x2 up ───────┴ FCN-16s, x2 up ─┴ FCN-8s      ── bilinear up to the image (grids.FcnGrid)
                           └ FCN-32s

Scores start at zero. The x2 upsampling starts as bilinear and is learned (section 4.3 of the paper; the released models
keep it fixed). The skips are scaled as in the released model that is trained in one stage, so one run from ImageNet
weights is enough; the paper trains in stages, each from the coarser network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxsup_dist.model.backbones import Backbone, classifier_as_convolutions, load_vgg16, vgg16_layers
from boxsup_dist.model.grids import FcnGrid
from boxsup_dist.model.heads import init_convolutions, zero_score
from boxsup_dist.model.weights import FCN_STRIDES, Pretrained

_POOL_INDICES = (16, 23, 30)  # pool3, pool4, pool5 in torchvision's numbering
_POOL4_SCALE, _POOL3_SCALE = 0.01, 0.0001
_POOL4_CROP, _POOL3_CROP = 5, 9  # cells from the pools' corner to that of the scores that they are added to

Features = tuple[Tensor, Tensor, Tensor]  # at strides 8, 16 and 32


class Vgg16Pools(nn.Sequential):
    """VGG-16's convolutions with all five pools; returns the maps of the last three."""

    def forward(self, images: Tensor) -> Features:
        """Padded images (N, 3, H, W) to pool3 (N, 256, H/8, W/8), pool4 (N, 512, ..) and pool5, sizes rounded up."""
        found = []
        for index, layer in enumerate(self):
            images = layer(images)
            if index in _POOL_INDICES:
                found.append(images)
        pool3, pool4, pool5 = found
        return pool3, pool4, pool5


def fcn_backbone(name: str, pretrained: Pretrained | None) -> Backbone:
    """VGG-16 down to stride 32; its 2x2 pools round sizes up, as Caffe's do.

    Raises:
        WeightsError: The weights do not fit.
    """
    pools = [nn.MaxPool2d(2, stride=2, ceil_mode=True) for _ in range(5)]
    return load_vgg16(Vgg16Pools(*vgg16_layers(pools)), pretrained, FcnGrid(FCN_STRIDES[name]))


class FcnHead(nn.Module):
    """VGG-16's classifier as convolutions: 7x7 (fc6) without padding and 1x1 (fc7), each with ReLU and dropout."""

    def __init__(self, in_channels: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.fc6 = nn.Conv2d(in_channels, channels, 7)
        self.fc7 = nn.Conv2d(channels, channels, 1)
        self.drop6, self.drop7 = nn.Dropout(dropout), nn.Dropout(dropout)
        init_convolutions(self)

    def forward(self, features: Features) -> Features:
        """The same features, with pool5 (N, in_channels, h, w) replaced by (N, channels, h - 6, w - 6)."""
        pool3, pool4, pool5 = features
        hidden = self.drop6(F.relu(self.fc6(pool5)))
        return pool3, pool4, self.drop7(F.relu(self.fc7(hidden)))

    @torch.no_grad()
    def init_from_classifier(self, pretrained: Pretrained) -> None:
        """Start fc6 and fc7, of 4096 channels, from VGG-16's classifier. WeightsError if the weights have none."""
        assert self.fc6.bias is not None and self.fc7.bias is not None
        weight6, bias6, weight7, bias7 = classifier_as_convolutions(pretrained)
        self.fc6.weight.copy_(weight6)
        self.fc6.bias.copy_(bias6)
        self.fc7.weight.copy_(weight7)
        self.fc7.bias.copy_(bias7)


class FcnScore(nn.Module):
    """Scores of the head and, at strides below 32, of the pools, added up on the finest grid."""

    def __init__(self, stride: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc7 = zero_score(channels, num_classes)
        if stride <= 16:
            self.up_fc7 = _bilinear_x2(num_classes)
            self.pool4 = zero_score(512, num_classes)
        if stride == 8:
            self.up_pool4 = _bilinear_x2(num_classes)
            self.pool3 = zero_score(256, num_classes)
        self.stride = stride

    def forward(self, features: Features) -> Tensor:
        """Features at strides 8, 16 and 32 to scores (N, C, h, w) at the stride of the network."""
        pool3, pool4, fc7 = features
        scores: Tensor = self.fc7(fc7)
        if self.stride <= 16:
            scores = self.up_fc7(scores)
            scores = scores + self.pool4(_crop_like(pool4, scores, _POOL4_CROP) * _POOL4_SCALE)
        if self.stride == 8:
            scores = self.up_pool4(scores)
            scores = scores + self.pool3(_crop_like(pool3, scores, _POOL3_CROP) * _POOL3_SCALE)
        return scores


def _crop_like(features: Tensor, scores: Tensor, offset: int) -> Tensor:
    height, width = scores.shape[2:]
    return features[:, :, offset : offset + height, offset : offset + width]


@torch.no_grad()
def _bilinear_x2(num_classes: int) -> nn.ConvTranspose2d:
    """A learnable deconvolution that starts as bilinear upsampling of each class by itself."""
    layer = nn.ConvTranspose2d(num_classes, num_classes, 4, stride=2, bias=False)
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    layer.weight.zero_()
    for class_id in range(num_classes):
        layer.weight[class_id, class_id] = torch.outer(ramp, ramp)
    return layer
