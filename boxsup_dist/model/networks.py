"""Segmentation networks: the paper's DeepLab-LargeFOV on VGG-16, and any timm backbone with a LargeFOV or ASPP head.

A network takes RGB values 0..255 and knows itself what its backbone wants (mean, standard deviation).

Alignment: a strided convolution or pool of odd kernel, padded by half of it, has its cell i centred on pixel stride * i
exactly when the size is a multiple of the stride plus one. So images are padded at the right and bottom to such a size
with the backbone's zero (mean colour), the scores are upsampled bilinearly with align_corners=True, which puts cell i on
pixel stride * i, and the padding is cut off. Any size from 1x1 works; crops of k * stride + 1 pixels waste nothing.
(TensorFlow's "same" padding, too, is symmetric at these sizes, and shifted by half a cell at even ones.)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxsup_dist.errors import SettingError
from boxsup_dist.model.weights import (
    TIMM_PREFIX,
    VGG16_NAME,
    Pretrained,
    default_weights,
    fit_into,
    load_pretrained,
)

Head = Literal["largefov", "aspp"]
_VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_VGG16_CLASSIFIER = ("classifier.",)


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build the network again, but its weights. None is replaced by the default of `name`."""

    name: str  # deeplab_largefov_vgg16 or timm:MODEL
    num_classes: int  # with background
    output_stride: int | None = None  # input pixels per score cell; 8 for VGG-16, 8 or 16 (default) for timm
    head: Head = "largefov"
    head_channels: int | None = None  # 1024 for VGG-16 as published, 256 for timm
    dropout: float | None = None  # before the score layer (VGG-16: also after fc6); 0.5 for VGG-16, 0.1 for timm
    freeze_batch_norm: bool = True  # keep the backbone's statistics, scale and shift as pretrained

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

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class LargeFov(nn.Module):
    """DeepLab-LargeFOV's head: a dilated 3x3 convolution (fc6) and a 1x1 one (fc7), each with ReLU and dropout.

    `smooth` puts the 3x3 average pool of the published VGG-16 network in front.
    """

    def __init__(self, in_channels: int, channels: int, dilation: int, dropout: float, smooth: bool) -> None:
        super().__init__()
        self.smooth = nn.AvgPool2d(3, stride=1, padding=1) if smooth else nn.Identity()
        self.fc6 = nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation)
        self.drop6 = nn.Dropout(dropout if smooth else 0.0)
        self.fc7 = nn.Conv2d(channels, channels, 1)
        self.drop7 = nn.Dropout(dropout)
        self.out_channels = channels

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.drop6(F.relu(self.fc6(self.smooth(features))))
        return self.drop7(F.relu(self.fc7(hidden)))


class Aspp(nn.Module):
    """Atrous spatial pyramid: a 1x1 and three dilated 3x3 convolutions side by side, joined by a 1x1 one.

    No image-level pooling and no normalisation: scores depend neither on the padding nor on the batch.
    """

    def __init__(self, in_channels: int, channels: int, dilations: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        branches = [nn.Conv2d(in_channels, channels, 1)]
        branches += [nn.Conv2d(in_channels, channels, 3, padding=d, dilation=d) for d in dilations]
        self.branches = nn.ModuleList(branches)
        self.join = nn.Conv2d(channels * len(branches), channels, 1)
        self.drop = nn.Dropout(dropout)
        self.out_channels = channels

    def forward(self, features: Tensor) -> Tensor:
        joined = torch.cat([F.relu(branch(features)) for branch in self.branches], dim=1)
        return self.drop(F.relu(self.join(joined)))


class SegmentationNetwork(nn.Module):
    """Backbone (`body`), head and a 1x1 score layer that starts at zero, so that an untrained network is uniform.

    While `spec.freeze_batch_norm` holds, batch norms stay in evaluation mode in training, with fixed scale and shift: the
    result does not depend on how many images a worker has in its batch, nor on the number of workers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetworkSpec, body: nn.Module, in_channels: int, mean: Tensor, std: Tensor) -> None:
        """`spec` is resolved; mean and std (3,) are RGB on 0..255."""
        super().__init__()
        assert spec.output_stride and spec.head_channels and spec.dropout is not None
        self.spec = spec
        self.body = body
        self.head = _build_head(spec, in_channels)
        self.score = nn.Conv2d(spec.head_channels, spec.num_classes, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]
        # Buffers and so part of a checkpoint: what the input must look like depends on the weights.
        self.register_buffer("mean", mean.float().reshape(1, 3, 1, 1))
        self.register_buffer("std", std.float().reshape(1, 3, 1, 1))
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

    def score_map(self, images: Tensor) -> Tensor:
        """Logits (N, C, h, w) at the output stride s: cell (i, j) is centred on pixel (s * i, s * j), h = ceil((H-1)/s) + 1.

        `images` as in `forward`.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images are (N, 3, H, W) RGB 0..255 with no empty side, found {tuple(images.shape)}")
        stride = self.spec.output_stride
        assert stride
        values = (images.to(self.mean.dtype) - self.mean) / self.std
        height, width = images.shape[2:]
        values = F.pad(values, (0, -(width - 1) % stride, 0, -(height - 1) % stride))
        features = self.body(values)
        return self.score(self.head(features[-1] if isinstance(features, list) else features))

    def upsample(self, score_map: Tensor, height: int, width: int) -> Tensor:
        """Score map (N, C, h, w) at stride s to float32 logits (N, C, H, W), bilinear, as the module docstring says."""
        assert self.spec.output_stride
        rows, columns = ((side - 1) * self.spec.output_stride + 1 for side in score_map.shape[2:])
        full = F.interpolate(score_map.float(), size=(rows, columns), mode="bilinear", align_corners=True)
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

    `weights` is a spec of `model.weights` (None: the default of `name`; "none": random). New layers draw their values from
    torch's global generator: seed it first. Raises SettingError or WeightsError.
    """
    spec = NetworkSpec(name, num_classes, output_stride, head, head_channels, dropout, freeze_batch_norm)
    return build_from_spec(spec, weights)


def build_from_spec(spec: NetworkSpec, weights: str | None = None) -> SegmentationNetwork:
    """As build_network, from a spec."""
    spec = spec.resolved()
    pretrained = load_pretrained(default_weights(spec.name) if weights is None else weights, spec.name)
    build = _build_vgg16 if spec.name == VGG16_NAME else _build_timm
    return build(spec, pretrained)


def _build_head(spec: NetworkSpec, in_channels: int) -> LargeFov | Aspp:
    """Dilations cover the same field of view in pixels at both output strides: 12 cells of 8 pixels for LargeFOV."""
    assert spec.output_stride and spec.head_channels and spec.dropout is not None
    scale = 16 // spec.output_stride
    head: LargeFov | Aspp
    if spec.head == "largefov":
        head = LargeFov(in_channels, spec.head_channels, 6 * scale, spec.dropout, smooth=spec.name == VGG16_NAME)
    else:
        head = Aspp(in_channels, spec.head_channels, (3 * scale, 6 * scale, 9 * scale), spec.dropout)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return head


def _vgg16_body() -> nn.Sequential:
    """VGG-16's convolutions in torchvision's numbering, as DeepLab-LargeFOV changes them.

    Pools are 3x3 with padding; the last two have stride 1, and the convolutions between them dilation 2.
    """
    layers: list[nn.Module] = []
    in_channels = 3
    for stage, widths in enumerate(_VGG16_CHANNELS):
        dilation = 2 if stage == 4 else 1
        for channels in widths:
            layers += [nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
            in_channels = channels
        layers.append(nn.MaxPool2d(3, stride=2 if stage < 3 else 1, padding=1))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def _build_vgg16(spec: NetworkSpec, pretrained: Pretrained | None) -> SegmentationNetwork:
    mean, std = (pretrained.mean, pretrained.std) if pretrained else (None, None)
    network = SegmentationNetwork(
        spec, _vgg16_body(), 512, torch.tensor(mean or (123.0, 117.0, 104.0)), torch.tensor(std or (1.0, 1.0, 1.0))
    )
    if pretrained:
        fit_into(network.body, pretrained, unused=_VGG16_CLASSIFIER, prefix="features.")
        assert isinstance(network.head, LargeFov)
        _init_fc_from_classifier(network.head, pretrained)
    return network


@torch.no_grad()
def _init_fc_from_classifier(head: LargeFov, pretrained: Pretrained) -> None:
    """Start fc6 and fc7 from the classifier's layers, thinned out as DeepLab does: every 4th unit, 3x3 of the 7x7.

    Nothing happens without a classifier (torchvision's IMAGENET1K_FEATURES holds NaN there) or at other widths.
    """
    fc6, fc7 = pretrained.state.get("classifier.0.weight"), pretrained.state.get("classifier.3.weight")
    if fc6 is None or fc7 is None or fc6.shape != (4096, 512 * 7 * 7) or head.out_channels != 1024:
        return
    if not (torch.isfinite(fc6).all() and torch.isfinite(fc7).all()):
        return
    head.fc6.weight.copy_(fc6.reshape(4096, 512, 7, 7)[::4, :, ::3, ::3])
    head.fc7.weight.copy_(fc7[::4, ::4].reshape(1024, 1024, 1, 1))
    for layer, index in ((head.fc6, 0), (head.fc7, 3)):
        assert layer.bias is not None
        layer.bias.copy_(pretrained.state[f"classifier.{index}.bias"][::4])


def _build_timm(spec: NetworkSpec, pretrained: Pretrained | None) -> SegmentationNetwork:
    import timm

    model = spec.name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(model):
        close = timm.list_models(f"*{model.split('.')[0][:8]}*")[:5]
        raise SettingError("timm has no such model", field="name", value=model, expected=f"such as {close}")
    try:
        body = timm.create_model(
            model, pretrained=False, features_only=True, out_indices=(-1,), output_stride=spec.output_stride
        )
        info = body.feature_info
        reduction = info.reduction()[-1]
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, NotImplementedError) as error:
        raise SettingError(
            f"timm's {model} can't give features at output stride {spec.output_stride}: {str(error)[:200]}",
            field="name",
        ) from None
    if reduction != spec.output_stride:
        raise SettingError(
            "the backbone's deepest features have another stride", field="output_stride", value=reduction, expected=
            str(spec.output_stride),
        )  # fmt: skip
    if pretrained:
        fit_into(body, pretrained, unused=_timm_keys(model), flatten=True)
    config = timm.get_pretrained_cfg(model)
    assert config is not None
    mean = pretrained.mean if pretrained and pretrained.mean else tuple(255 * v for v in config.mean)
    std = pretrained.std if pretrained and pretrained.std else tuple(255 * v for v in config.std)
    return SegmentationNetwork(spec, body, info.channels()[-1], torch.tensor(mean), torch.tensor(std))


def _timm_keys(model: str) -> list[str]:
    """State-dict keys of the whole timm model with its classifier, built without memory."""
    import timm

    with torch.device("meta"):
        return list(timm.create_model(model, pretrained=False).state_dict())


def parameter_groups(
    network: SegmentationNetwork, lr: float, head_lr_multiplier: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for torch.optim.SGD: body and head (all layers after the backbone), each weights and biases.

    Body parameters learn with `lr`, head parameters with `lr * head_lr_multiplier`. Biases and norms have no weight decay.
    DeepLab also doubles the learning rate of biases and multiplies only that of the score layer; left out as having no
    measurable effect that would justify the settings. Frozen parameters are in no group.
    """
    groups = []
    for name, part, rate in (("body", "body.", lr), ("head", "", lr * head_lr_multiplier)):
        for kind, decay in (("weights", weight_decay), ("biases", 0.0)):
            params = [
                p
                for key, p in network.named_parameters()
                if p.requires_grad and key.startswith("body.") == bool(part) and (p.ndim > 1) == (kind == "weights")
            ]
            if params:
                groups.append({"params": params, "lr": rate, "weight_decay": decay, "name": f"{name}_{kind}"})
    return groups
