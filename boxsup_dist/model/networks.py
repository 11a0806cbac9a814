"""Segmentation networks: DeepLab-LargeFOV and FCN on VGG-16, any timm model with a LargeFOV or ASPP head.

`NetworkSettings` is what a user sets, `NetworkSpec` what is built and stored; `network_spec` makes the one from the
other. A network takes RGB values 0..255 at any image size. It holds the mean and the standard deviation that its
backbone expects, and the grid of its cells on the image (`grids`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxsup_dist.config import Head, NetworkSettings, OptimizerSettings
from boxsup_dist.errors import SettingError, WeightsError
from boxsup_dist.model.backbones import Backbone, init_from_classifier, vgg16
from boxsup_dist.model.fcn import FcnHead, FcnScore, fcn_backbone
from boxsup_dist.model.heads import Aspp, LargeFov, zero_score
from boxsup_dist.model.timm_backbones import timm_backbone, timm_strides
from boxsup_dist.model.weights import (
    FCN_STRIDES,
    TIMM_PREFIX,
    VGG16_NAME,
    VGG16_NAMES,
    Pretrained,
    default_weights,
    load_pretrained,
)

SCORE_PREFIX = "score."  # of the parameters whose shape depends on the classes, in every network


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a network again, except its weights. Every checkpoint stores it.

    Raises:
        SettingError: A value is out of range for this network; names the setting.
    """

    name: str  # deeplab_largefov_vgg16, fcn32s_vgg16, fcn16s_vgg16, fcn8s_vgg16 or timm:MODEL
    num_classes: int  # with background
    output_stride: int  # input pixels per cell of the score map
    head: Head
    head_channels: int
    dropout: float  # before the score layer, for VGG-16 also after fc6
    freeze_batch_norm: bool = True  # keep the statistics, scale and shift of the backbone

    def __post_init__(self) -> None:
        strides, heads = _strides(self.name), ("largefov",) if self.name in VGG16_NAMES else ("largefov", "aspp")
        checks = [
            ("num_classes", 2 <= self.num_classes <= 255, "2 to 255, background included"),
            (
                "output_stride",
                self.output_stride in strides,
                f"one of {strides}" if len(strides) > 1 else f"{strides[0]}, or not set",
            ),
            ("head", self.head in heads, f"one of {heads}"),
            ("head_channels", self.head_channels >= 1, "1 or more"),
            ("dropout", 0 <= self.dropout < 1, "from 0 to below 1"),
        ]
        for name, good, expected in checks:
            if not good:
                field, value = f"network.{name}", getattr(self, name)
                raise SettingError(f"cannot build {self.name}", field=field, value=value, expected=expected)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """Inverse of to_dict.

        Raises:
            SettingError: A field is unknown, missing, of another type or out of range.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise SettingError("not a network spec", field="network", value=str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def network_spec(settings: NetworkSettings, num_classes: int) -> NetworkSpec:
    """The network that these settings describe: what is not set takes the network's own default.

    Args:
        settings: Settings of the user; `weights` is not used.
        num_classes: Classes of the records, background included.

    Raises:
        SettingError: There is no such network, or a value is out of range for it; names the setting.
    """
    name, is_vgg = settings.name, settings.name in VGG16_NAMES
    channels = _published_channels(name) if is_vgg else 256
    return NetworkSpec(
        name,
        num_classes,
        output_stride=_strides(name)[-1] if settings.output_stride is None else settings.output_stride,
        head=settings.head,
        head_channels=channels if settings.head_channels is None else settings.head_channels,
        dropout=(0.5 if is_vgg else 0.1) if settings.dropout is None else settings.dropout,
    )


def _published_channels(name: str) -> int:
    """Channels of fc6 and fc7 in a network on VGG-16."""
    return 4096 if name in FCN_STRIDES else 1024


def _strides(name: str) -> tuple[int, ...]:
    """Output strides that a network can have, the default last. SettingError if there is no such network."""
    if name == VGG16_NAME:
        return (8,)
    if name in FCN_STRIDES:
        return (FCN_STRIDES[name],)
    if not name.startswith(TIMM_PREFIX):
        close = get_close_matches(name, VGG16_NAMES)
        expected = f"{close[0]}?" if close else f"{', '.join(VGG16_NAMES)} or timm:MODEL"
        raise SettingError("unknown network", field="network.name", value=name, expected=expected)
    return timm_strides(name.removeprefix(TIMM_PREFIX))


class SegmentationNetwork(nn.Module):
    """Backbone (`body`), head and score layers that start at zero, so that an untrained network is uniform.

    With `spec.freeze_batch_norm` the batch norms of the backbone stay in evaluation mode during training, with fixed
    scale and shift: results do not depend on how many images of a batch are on one worker.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetworkSpec, backbone: Backbone) -> None:
        super().__init__()
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
        """Logits (N, C, h, w) at the output stride, on the network's grid.

        Args:
            images: Images as `forward` takes them.

        Raises:
            ValueError: `images` has another shape, or an empty side.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images must be (N, 3, H, W), RGB 0..255, no empty side; found {tuple(images.shape)}")
        values = (images.to(self.mean.dtype) - self.mean) / self.std
        scores: Tensor = self.score(self.head(self.body(self.grid.pad(values))))
        return scores

    def upsample(self, score_map: Tensor, height: int, width: int) -> Tensor:
        """Score map (N, C, h, w) to float32 logits (N, C, height, width), bilinear on the network's grid."""
        return self.grid.upsample(score_map, height, width)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (N, C, H, W) for `images` (N, 3, H, W), RGB 0..255, uint8 or float, of any size from 1x1."""
        return self.upsample(self.score_map(images), images.shape[2], images.shape[3])


def _head_and_score(spec: NetworkSpec, in_channels: int) -> tuple[nn.Module, nn.Module]:
    if spec.name in FCN_STRIDES:
        fcn_head = FcnHead(in_channels, spec.head_channels, spec.dropout)
        return fcn_head, FcnScore(spec.output_stride, spec.head_channels, spec.num_classes)
    sizes = (in_channels, spec.head_channels, spec.output_stride, spec.dropout)
    head = Aspp(*sizes) if spec.head == "aspp" else LargeFov(*sizes, published=spec.name == VGG16_NAME)
    return head, zero_score(spec.head_channels, spec.num_classes)


def build_network(spec: NetworkSpec, weights: str | None = None, *, random_fc: bool = False) -> SegmentationNetwork:
    """Build a network with pretrained weights, in training mode.

    New layers draw their values from torch's global generator: seed it first.

    Args:
        spec: What to build.
        weights: A spec of `model.weights`, except checkpoint:URI (`transfer.start_network` takes it). None: the
            network's usual weights. "none": random values.
        random_fc: Start fc6 and fc7 of a network on VGG-16 at random instead of from the classifier in the weights.

    Raises:
        SettingError: timm has no such model, it has no map of features at the output stride, `random_fc` has no effect,
            or fc6 and fc7 have not the width of the classifier.
        WeightsError: The weights cannot be read, are of another network, or lack the classifier that fc6 and fc7 need.
    """
    has_fc = spec.name in VGG16_NAMES and weights != "none"
    if random_fc and not has_fc:
        raise SettingError(
            "random_fc has no effect: it is for networks on VGG-16 with pretrained weights",
            field="network.random_fc",
            value=True,
            expected="not set",
        )
    if has_fc and not random_fc and spec.head_channels != _published_channels(spec.name):
        raise SettingError(
            "fc6 and fc7 cannot start from VGG-16's classifier at another width",
            field="network.head_channels",
            value=spec.head_channels,
            expected=f"{_published_channels(spec.name)}, or --network.random-fc to start them at random",
        )
    pretrained = load_pretrained(default_weights(spec.name) if weights is None else weights, spec.name)
    network = SegmentationNetwork(spec, _backbone(spec, pretrained))
    if pretrained and not random_fc and isinstance(network.head, FcnHead):
        network.head.init_from_classifier(pretrained)
    elif pretrained and not random_fc and spec.name == VGG16_NAME and isinstance(network.head, LargeFov):
        init_from_classifier(network.head, pretrained)
    return network


def _backbone(spec: NetworkSpec, pretrained: Pretrained | None) -> Backbone:
    if spec.name == VGG16_NAME:
        return vgg16(pretrained)
    if spec.name in FCN_STRIDES:
        return fcn_backbone(spec.name, pretrained)
    return timm_backbone(spec.name.removeprefix(TIMM_PREFIX), spec.output_stride, pretrained)


def network_from_state(spec: NetworkSpec, state: Mapping[str, Tensor]) -> SegmentationNetwork:
    """The network in evaluation mode with the weights of a trained one.

    It needs no pretrained weights and leaves torch's random state as it was.

    Raises:
        SettingError: timm no longer has the model.
        WeightsError: The state dict does not fit `spec` exactly.
    """
    with torch.random.fork_rng(devices=[]):
        network = build_network(spec, "none")
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsError(
            "the state dict is of another network", value=str(error)[:300], expected=f"weights of {spec}"
        ) from None
    return network.eval()


def parameter_groups(network: SegmentationNetwork, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: body, head and score layers, each weights, biases and scales.

    Frozen parameters are in no group. Biases and scales have no weight decay. The scales are those of norms and blocks,
    and a transformer's tokens and position embeddings.

    Args:
        network: The network whose parameters are grouped.
        settings: The learning rate, its factors, and the weight decay.
    """
    members: dict[tuple[str, str], list[nn.Parameter]] = {}
    for key, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim > 1 and key.endswith(".weight")
            kind = "biases" if key.endswith(".bias") else "weights" if is_weight else "scales"
            members.setdefault((key.partition(".")[0], kind), []).append(parameter)
    factors = {"body": 1.0, "head": settings.head_lr_multiplier, "score": settings.score_lr_multiplier}
    return [
        {
            "params": params,
            "lr": settings.lr * factors[part] * (settings.bias_lr_multiplier if kind == "biases" else 1.0),
            "weight_decay": settings.weight_decay if kind == "weights" else 0.0,
            "name": f"{part}_{kind}",
        }
        for (part, kind), params in members.items()
    ]
