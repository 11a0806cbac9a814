"""Segmentation networks: the paper's DeepLab-LargeFOV on VGG-16, and any timm backbone with a LargeFOV or ASPP head.

A network takes RGB values 0..255 at any image size and knows itself what its backbone wants (mean, standard deviation).

Alignment: odd kernels padded by half of them centre cell i of a map of stride s on pixel s * i, at sizes of a multiple
of s plus one. So images are padded at the right and bottom to such a size with the backbone's zero (mean colour),
scores are upsampled bilinearly with align_corners=True, which puts cell i on pixel s * i again, and the padding is cut.
Crops of s * k + 1 pixels waste nothing. (TensorFlow's "same" padding shifts by nearly half a cell at multiples of s, by
nothing at these sizes.) Backbones of patches (ConvNeXt) are padded to a multiple of s, with align_corners=False; what
their dilated even kernels shift is left to the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxsup_dist.errors import SettingError, WeightsError
from boxsup_dist.model.backbones import Backbone, init_from_classifier, timm_backbone, vgg16
from boxsup_dist.model.heads import Aspp, LargeFov
from boxsup_dist.model.weights import TIMM_PREFIX, VGG16_NAME, default_weights, load_pretrained

Head = Literal["largefov", "aspp"]


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build the network again, but its weights. None is replaced by the default of `name`."""

    name: str  # deeplab_largefov_vgg16 or timm:MODEL
    num_classes: int  # with background
    output_stride: int | None = None  # input pixels per score cell; 8 for VGG-16, 8 or 16 (default) for timm
    head: Head = "largefov"
    head_channels: int | None = None  # 1024 for VGG-16 as published, 256 for timm
    dropout: float | None = None  # before the score layer (VGG-16: also after fc6); 0.5 for VGG-16, 0.1 for timm
    freeze_batch_norm: bool = True  # keep the backbone's statistics, scale and shift; False for random weights

    def resolved(self) -> NetworkSpec:
        """The spec with defaults filled in. SettingError names what is out of range."""
        is_vgg = self.name == VGG16_NAME
        if not is_vgg and not self.name.startswith(TIMM_PREFIX):
            raise SettingError("unknown network", field="name", value=self.name, expected=f"{VGG16_NAME} or timm:MODEL")
        spec = replace(
            self,
            output_stride=self.output_stride or (8 if is_vgg else 16),
            head_channels=self.head_channels or (1024 if is_vgg else 256),
            dropout=(0.5 if is_vgg else 0.1) if self.dropout is None else self.dropout,
        )
        assert spec.head_channels is not None and spec.dropout is not None
        strides = (8,) if is_vgg else (8, 16)
        heads = ("largefov",) if is_vgg else ("largefov", "aspp")
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
    """Backbone (`body`), head and a 1x1 score layer that starts at zero, so that an untrained network is uniform.

    While `spec.freeze_batch_norm` holds, the backbone's batch norms stay in evaluation mode in training, with fixed
    scale and shift: results do not depend on how many images of a batch are on one worker.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetworkSpec, backbone: Backbone) -> None:
        """`spec` must be resolved."""
        super().__init__()
        assert spec.output_stride and spec.head_channels and spec.dropout is not None
        self.spec = spec
        self.output_stride = spec.output_stride
        self.patches = backbone.patches
        self.body = backbone.module
        sizes = (backbone.out_channels, spec.head_channels, spec.output_stride, spec.dropout)
        self.head = Aspp(*sizes) if spec.head == "aspp" else LargeFov(*sizes, published=spec.name == VGG16_NAME)
        self.score = nn.Conv2d(spec.head_channels, spec.num_classes, 1)
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)
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
        """Logits (N, C, h, w) at the output stride s, on the backbone's grid (module docstring).

        `images` as in `forward`; h = ceil((H - 1) / s) + 1, or ceil(H / s) for a backbone of patches.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images are (N, 3, H, W) RGB 0..255 without an empty side, found {tuple(images.shape)}")
        values = (images.to(self.mean.dtype) - self.mean) / self.std
        extra = 0 if self.patches else 1
        height, width = images.shape[2:]
        padding = (0, (extra - width) % self.output_stride, 0, (extra - height) % self.output_stride)
        return self.score(self.head(self.body(F.pad(values, padding))))

    def upsample(self, score_map: Tensor, height: int, width: int) -> Tensor:
        """Score map (N, C, h, w) to float32 logits (N, C, height, width), bilinear on the backbone's grid."""
        extra = 0 if self.patches else 1
        size = [(cells - extra) * self.output_stride + extra for cells in score_map.shape[2:]]
        full = F.interpolate(score_map.float(), size=size, mode="bilinear", align_corners=not self.patches)
        return full[:, :, :height, :width]

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (N, C, H, W) for `images` (N, 3, H, W), RGB 0..255, uint8 or float, of any size from 1x1."""
        return self.upsample(self.score_map(images), images.shape[2], images.shape[3])


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
    assert spec.output_stride
    pretrained = load_pretrained(default_weights(spec.name) if weights is None else weights, spec.name)
    if spec.name != VGG16_NAME:
        model = spec.name.removeprefix(TIMM_PREFIX)
        return SegmentationNetwork(spec, timm_backbone(model, spec.output_stride, pretrained))
    network = SegmentationNetwork(spec, vgg16(pretrained))
    if pretrained and isinstance(network.head, LargeFov):
        init_from_classifier(network.head, pretrained)
    return network


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
