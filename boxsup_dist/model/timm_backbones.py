"""timm's models as backbones: every model that gives a map of features for images of any size.

A convolutional network is dilated to output stride 8 or 16. Every other model, transformers above all, keeps its own
stride, such as the side of its patches; its features are those of its last block after its final norm. Transformers
resample their position embeddings to the image, which is padded to whole patches. Models with windows or position
biases for one size of image are refused.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from boxsup_dist.config import TILE_GRID_PX
from boxsup_dist.errors import SettingError, WeightsError
from boxsup_dist.model.backbones import Backbone
from boxsup_dist.model.grids import CellGrid
from boxsup_dist.model.weights import Pretrained, fit_into

DILATED_STRIDES = (8, 16)


class DeepestFeatures(nn.Module):
    """A timm feature extractor that gives the one map asked for instead of a list."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to features (N, out_channels, h, w)."""
        features: Tensor = self.extractor(images)[-1]
        return features


class LastBlock(nn.Module):
    """A whole timm model, without its classifier, that gives the map of its last block after its final norm."""

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        extractor.prune_intermediate_layers(1, prune_norm=False)
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to features (N, out_channels, h, w)."""
        features: Tensor = self.extractor.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )[-1]
        return features


def check_timm_model(model: str) -> None:
    """Check that timm has this model, by its list: nothing is built.

    Raises:
        SettingError: It has not; lists names that are close.
    """
    import timm

    if not timm.is_model(model):
        close = get_close_matches(model, timm.list_models()) or ["resnet50", "convnext_tiny"]
        expected = ", ".join(f"timm:{name}" for name in close)
        raise SettingError("timm has no such model", field="network.name", value=f"timm:{model}", expected=expected)


@functools.cache
def timm_strides(model: str) -> tuple[int, ...]:
    """Output strides that a timm model can have, the default last: 8 and 16 if it can be dilated, else its own.

    The model is built without memory for its weights, once per process.

    Raises:
        SettingError: timm has no such model, or its deepest features are no map or too coarse.
    """
    check_timm_model(model)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            if _dilated(model, DILATED_STRIDES[-1]).feature_info.reduction()[-1] == DILATED_STRIDES[-1]:
                return DILATED_STRIDES
        except Exception:  # timm's models refuse to be dilated in many ways
            pass
        try:
            stride = int(_whole(model).feature_info[-1]["reduction"])
        except Exception as error:
            raise _no_map(model, f"{type(error).__name__}: {error}") from None
    if stride > TILE_GRID_PX:
        raise _no_map(model, f"a stride of {stride} px, above {TILE_GRID_PX}")
    return (stride,)


def timm_backbone(model: str, output_stride: int, pretrained: Pretrained | None) -> Backbone:
    """The deepest features of a timm model at `output_stride`.

    Raises:
        SettingError: timm has no such model, or it has no map of features at this stride for images of any size.
        WeightsError: The weights do not fit.
    """
    import timm

    is_dilated = timm_strides(model) == DILATED_STRIDES
    module: DeepestFeatures | LastBlock
    try:
        module = DeepestFeatures(_dilated(model, output_stride)) if is_dilated else LastBlock(_whole(model))
        # Of a dilated network an image of one cell is not tried: its grid is that of its earlier checkpoints.
        grid, channels = _grid_and_channels(module, output_stride, ((3, 4),) if is_dilated else ((3, 4), (1, 1)))
    except Exception as error:  # timm's models refuse in many ways
        raise _no_map(model, f"at output stride {output_stride}: {type(error).__name__}: {error}") from None
    if pretrained:
        with torch.device("meta"):
            whole = timm.create_model(model) if is_dilated else _whole(model)
        fit_into(module.extractor, _in_timm_names(pretrained, whole), unused=list(whole.state_dict()), flatten=True)
    config = timm.get_pretrained_cfg(model)
    assert config is not None
    mean = pretrained.mean if pretrained and pretrained.mean else tuple(255 * v for v in config.mean)
    std = pretrained.std if pretrained and pretrained.std else tuple(255 * v for v in config.std)
    return Backbone(module, channels, mean, std, grid)


def _no_map(model: str, reason: str) -> SettingError:
    return SettingError(
        f"timm's {model} has no usable map of features for images of any size",
        field="network.name",
        value=reason[:200],
        expected="a model such as timm:tf_efficientnet_lite0, timm:convnext_tiny or timm:vit_small_patch14_dinov2",
    )


def _dilated(model: str, output_stride: int) -> Any:
    import timm

    return timm.create_model(
        model, pretrained=False, features_only=True, out_indices=(-1,), output_stride=output_stride
    )


def _whole(model: str) -> Any:
    import timm

    try:
        return timm.create_model(model, pretrained=False, dynamic_img_size=True)
    except TypeError:  # the class has no such argument: it takes images of any size anyway, or never
        return timm.create_model(model, pretrained=False)


@torch.no_grad()
def _grid_and_channels(module: nn.Module, stride: int, sizes: Sequence[tuple[int, int]]) -> tuple[CellGrid, int]:
    """Try images of these sizes, in cells, first of a grid of corners, then of one of patches; also count the channels.

    Raises:
        ValueError: The features are no map (1, C, h, w) of that many cells.
        Exception: The model takes no image of this size.
    """
    module.eval()
    for extra in (1, 0):
        try:
            images = [torch.zeros(1, 3, *((cells - extra) * stride + extra for cells in size)) for size in sizes]
            shapes = [tuple(module(image).shape) for image in images]
        except Exception:  # a transformer takes whole patches alone
            if extra == 0:
                raise
            continue
        if all(len(shape) == 4 and shape[2:] == size for shape, size in zip(shapes, sizes, strict=True)):
            return CellGrid(stride, patches=extra == 0), shapes[0][1]
    raise ValueError(f"features of shape {shapes[0]} for an image of {tuple(images[0].shape[2:])} px")


def _in_timm_names(pretrained: Pretrained, whole: nn.Module) -> Pretrained:
    """The weights with timm's names and position embeddings of the model's grid, as timm converts published files.

    Args:
        pretrained: In the names of timm or of the model's authors.
        whole: The model; its tensors may be without memory.

    Raises:
        WeightsError: timm cannot convert them.
    """
    convert: Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]] | None = getattr(
        sys.modules[type(whole).__module__], "checkpoint_filter_fn", None
    )
    if convert is None:
        return pretrained
    try:
        return replace(pretrained, state=convert(dict(pretrained.state), whole))
    except Exception as error:  # of a state dict of another model
        raise WeightsError(
            "timm cannot read the weights as those of the network",
            file=pretrained.source,
            value=f"{type(error).__name__}: {error}"[:200],
            expected=f"tensors such as {list(whole.state_dict())[:3]}",
        ) from None
