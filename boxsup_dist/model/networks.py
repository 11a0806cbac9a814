"""Segmentation networks: DeepLab-LargeFOV and FCN on VGG-16, any timm backbone with a LargeFOV or ASPP head.

A network takes RGB values 0..255 at any image size and knows itself what its backbone wants (mean, standard deviation)
and where its cells lie on the image (`grids`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxsup_dist.errors import SettingError, WeightsError
from boxsup_dist.model.backbones import Backbone, init_from_classifier, timm_backbone, vgg16
from boxsup_dist.model.fcn import FcnHead, FcnScore, fcn_backbone
from boxsup_dist.model.heads import Aspp, LargeFov, zero_score
from boxsup_dist.model.weights import (
    FCN_STRIDES,
    TIMM_PREFIX,
    VGG16_NAME,
    VGG16_NAMES,
    Pretrained,
    default_weights,
    load_pretrained,
)

Head = Literal["largefov", "aspp"]
SCORE_PREFIX = "score."  # of the parameters whose shape depends on the classes, in every network


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build the network again, but its weights. None is replaced by the default of `name`."""

    name: str  # deeplab_largefov_vgg16, fcn32s_vgg16, fcn16s_vgg16, fcn8s_vgg16 or timm:MODEL
    num_classes: int  # with background
    output_stride: int | None = None  # input pixels per score cell; DeepLab 8, timm 8 or 16 (default), FCN its own
    head: Head = "largefov"  # of timm backbones; the others have their own
    head_channels: int | None = None  # as published 1024 for DeepLab, 4096 for FCN; 256 for timm
    dropout: float | None = None  # before the score layer (VGG-16: also after fc6); 0.5 for VGG-16, 0.1 for timm
    freeze_batch_norm: bool = True  # keep the backbone's statistics, scale and shift; False for random weights

    def resolved(self) -> NetworkSpec:
        """The spec with defaults filled in. SettingError names what is out of range."""
        is_vgg = self.name in VGG16_NAMES
        if not is_vgg and not self.name.startswith(TIMM_PREFIX):
            expected = f"{', '.join(VGG16_NAMES)} or timm:MODEL"
            raise SettingError("unknown network", field="name", value=self.name, expected=expected)
        strides = (FCN_STRIDES.get(self.name, 8),) if is_vgg else (8, 16)
        heads = ("largefov",) if is_vgg else ("largefov", "aspp")
        channels = (4096 if self.name in FCN_STRIDES else 1024) if is_vgg else 256
        spec = replace(
            self,
            output_stride=self.output_stride or strides[-1],
            head_channels=self.head_channels or channels,
            dropout=(0.5 if is_vgg else 0.1) if self.dropout is None else self.dropout,
        )
        assert spec.head_channels is not None and spec.dropout is not None
        checks = [
            ("num_classes", 2 <= spec.num_classes <= 255, "2 to 255, background included"),
            ("output_stride", spec.output_stride in strides, f"one of {strides}"),
            ("head", spec.head in heads, f"one of {heads}"),
            ("head_channels", spec.head_channels >= 1, "1 or more"),
            ("dropout", 0 <= spec.dropout < 1, "from 0 to below 1"),
        ]
        for field, good, expected in checks:
            if not good:
                raise SettingError(
                    f"can't build {spec.name}", field=field, value=getattr(spec, field), expected=expected
                )
        return spec

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """Inverse of to_dict. SettingError names an unknown or missing field."""
        try:
            return cls(**values)
        except TypeError as error:
            raise SettingError("not a network spec", field="network", value=str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class SegmentationNetwork(nn.Module):
    """Backbone (`body`), head and score layers that start at zero, so that an untrained network is uniform.

    While `spec.freeze_batch_norm` holds, the backbone's batch norms stay in evaluation mode in training, with fixed
    scale and shift: results do not depend on how many images of a batch are on one worker.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetworkSpec, backbone: Backbone) -> None:
        """`spec` must be resolved."""
        super().__init__()
        assert spec.output_stride
        self.spec = spec
        self.output_stride = spec.output_stride
        self.grid = backbone.grid
        self.body = backbone.module
        self.head, self.score = _head_and_score(spec, backbone.out_channels)
        # Buffers and so part of a checkpoint: what the input must look like depends on the weights.
        self.register_buffer("mean", torch.tensor(backbone.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).reshape(1, 3, 1, 1))
        if spec.freeze_batch_norm:
            for norm in self._batch_norms():
                norm.requires_grad_(False)
        self.train()

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.body.modules() if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """Set the mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.spec.freeze_batch_norm:
            for norm in self._batch_norms():
                norm.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def score_map(self, images: Tensor) -> Tensor:
        """Logits (N, C, h, w) at the output stride, on the network's grid; `images` as in `forward`."""
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images are (N, 3, H, W) RGB 0..255 without an empty side, found {tuple(images.shape)}")
        values = (images.to(self.mean.dtype) - self.mean) / self.std
        return self.score(self.head(self.body(self.grid.pad(values))))

    def upsample(self, score_map: Tensor, height: int, width: int) -> Tensor:
        """Score map (N, C, h, w) to float32 logits (N, C, height, width), bilinear on the network's grid."""
        return self.grid.upsample(score_map, height, width)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (N, C, H, W) for `images` (N, 3, H, W), RGB 0..255, uint8 or float, of any size from 1x1."""
        return self.upsample(self.score_map(images), images.shape[2], images.shape[3])


def _head_and_score(spec: NetworkSpec, in_channels: int) -> tuple[nn.Module, nn.Module]:
    assert spec.output_stride and spec.head_channels and spec.dropout is not None
    if spec.name in FCN_STRIDES:
        fcn_head = FcnHead(in_channels, spec.head_channels, spec.dropout)
        return fcn_head, FcnScore(spec.output_stride, spec.head_channels, spec.num_classes)
    sizes = (in_channels, spec.head_channels, spec.output_stride, spec.dropout)
    head = Aspp(*sizes) if spec.head == "aspp" else LargeFov(*sizes, published=spec.name == VGG16_NAME)
    return head, zero_score(spec.head_channels, spec.num_classes)


def build_network(
    name: str,
    num_classes: int,
    *,
    output_stride: int | None = None,
    head: Head = "largefov",
    head_channels: int | None = None,
    dropout: float | None = None,
    freeze_batch_norm: bool = True,
    weights: str | None = None,
) -> SegmentationNetwork:
    """Build a network with pretrained weights, in training mode; settings as in NetworkSpec.

    `weights` is a spec of `model.weights` (None: the default of `name`; "none": random). New layers draw their values
    from torch's global generator: seed it first. Raises SettingError or WeightsError.
    """
    spec = NetworkSpec(name, num_classes, output_stride, head, head_channels, dropout, freeze_batch_norm)
    return build_from_spec(spec, weights)


def build_from_spec(spec: NetworkSpec, weights: str | None = None) -> SegmentationNetwork:
    """As build_network, from a spec."""
    spec = spec.resolved()
    pretrained = load_pretrained(default_weights(spec.name) if weights is None else weights, spec.name)
    network = SegmentationNetwork(spec, _backbone(spec, pretrained))
    if pretrained and isinstance(network.head, FcnHead):
        network.head.init_from_classifier(pretrained)
    elif pretrained and spec.name == VGG16_NAME and isinstance(network.head, LargeFov):
        init_from_classifier(network.head, pretrained)
    return network


def _backbone(spec: NetworkSpec, pretrained: Pretrained | None) -> Backbone:
    assert spec.output_stride
    if spec.name == VGG16_NAME:
        return vgg16(pretrained)
    if spec.name in FCN_STRIDES:
        return fcn_backbone(spec.name, pretrained)
    return timm_backbone(spec.name.removeprefix(TIMM_PREFIX), spec.output_stride, pretrained)


def network_from_state(spec: NetworkSpec, state: Mapping[str, Tensor]) -> SegmentationNetwork:
    """The network in evaluation mode with the weights of a trained one; needs no pretrained weights, draws no numbers.

    Raises WeightsError if the state dict does not fit `spec` exactly.
    """
    with torch.random.fork_rng(devices=[]):
        network = build_from_spec(spec, "none")
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsError(
            "the state dict is of another network", value=str(error)[:300], expected=f"weights of {spec}"
        ) from None
    return network.eval()


def parameter_groups(
    network: SegmentationNetwork, lr: float, head_lr_multiplier: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for torch.optim.SGD: body and head (all layers after the backbone), each weights and biases.

    The body learns with `lr`, the head with `lr * head_lr_multiplier`; biases and norms have no weight decay. Frozen
    parameters are in no group. Two departures from DeepLab, for fewer settings: it doubles the learning rate of biases,
    and multiplies that of the score layer only.
    """
    members: dict[tuple[str, str], list[nn.Parameter]] = {}
    for key, parameter in network.named_parameters():
        if parameter.requires_grad:
            part = "body" if key.startswith("body.") else "head"
            members.setdefault((part, "weights" if parameter.ndim > 1 else "biases"), []).append(parameter)
    return [
        {
            "params": params,
            "lr": lr if part == "body" else lr * head_lr_multiplier,
            "weight_decay": weight_decay if kind == "weights" else 0.0,
            "name": f"{part}_{kind}",
        }
        for (part, kind), params in members.items()
    ]
