"""Box-prompted segmenters in two ONNX files, with the names and shapes of SAM, SAM 2 and EfficientSAM.

They compute something real, without weights: the mask of a box holds its pixels whose colour is close to the mean in
the middle of the box. Three masks allow three distances; the score of a mask is the share of its box that it covers,
but the mask of the largest distance scores 0.1.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE, GRID = 1024, 256
DISTANCES = (0.5, 1.0, 8.0)  # in standard deviations of SAM's normalisation; the last takes the whole box
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
FAMILIES = ("sam", "sam_normalised", "sam2", "efficient")


def write_pair(folder: Path, family: str) -> tuple[str, str]:
    """Write encoder.onnx and decoder.onnx of a family into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("encoder.onnx", "decoder.onnx"):
        shutil.copy(_exported(family) / name, folder / name)
    return str(folder / "encoder.onnx"), str(folder / "decoder.onnx")


@functools.cache
def _exported(family: str) -> Path:
    """A temporary folder with both files, made once in a process."""
    folder = Path(tempfile.mkdtemp(prefix="onnx-pair-"))
    point = {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}}
    prompt = {
        "point_coords": torch.rand(1, 5, 2) * SIDE,
        "point_labels": torch.ones(1, 5),
        "mask_input": torch.zeros(1, 1, GRID, GRID),
        "has_mask_input": torch.ones(1),
    }
    features = torch.rand(1, 3, GRID, GRID)
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    if family == "efficient":
        export(
            EfficientEncoder(),
            {"batched_images": torch.rand(1, 3, 90, 120)},
            ["image_embeddings"],
            {"batched_images": {0: "batch", 2: "height", 3: "width"}},
            encoder,
        )
        given = {
            "image_embeddings": features,
            "batched_point_coords": torch.rand(1, 1, 3, 2) * 90,
            "batched_point_labels": torch.ones(1, 1, 3),
            "orig_im_size": torch.tensor([90, 120]),
        }
        dynamic = {"batched_point_coords": {2: "num_points"}, "batched_point_labels": {2: "num_points"}}
        export(EfficientDecoder(), given, ["output_masks", "iou_predictions"], dynamic, decoder)
    elif family == "sam2":
        names = ["high_res_feats_0", "high_res_feats_1", "image_embed"]
        export(Sam2Encoder(), {"image": torch.rand(1, 3, SIDE, SIDE)}, names, {}, encoder)
        given = {"image_embed": features} | dict.fromkeys(names[:2], features)
        export(Sam2Decoder(), given | prompt, ["masks", "iou_predictions"], point, decoder)
    else:
        is_normalised = family == "sam_normalised"
        image = torch.rand(1, 3, SIDE, SIDE) if is_normalised else torch.rand(SIDE, SIDE, 3)
        dynamic = {} if is_normalised else {"input_image": {0: "image_height", 1: "image_width"}}
        export(SamEncoder(is_normalised), {"input_image": image}, ["image_embeddings"], dynamic, encoder)
        given = {"image_embeddings": features, **prompt, "orig_im_size": torch.tensor([300.0, 400.0])}
        export(SamDecoder(), given, ["masks", "iou_predictions", "low_res_masks"], point, decoder)
    return folder


def export(network: nn.Module, given: dict[str, Tensor], outputs: list[str], dynamic: dict, path: Path) -> None:
    """Export as `samexporter` does: by the exporter that traces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, tuple(given.values()), str(path), input_names=list(given), output_names=outputs,
            dynamic_axes=dynamic, opset_version=18, dynamo=False,
        )  # fmt: skip


class SamEncoder(nn.Module):
    """Embeds the pixels themselves, every 4 x 4 as their mean."""

    def __init__(self, is_normalised: bool) -> None:
        super().__init__()
        self.is_normalised = is_normalised

    def forward(self, image: Tensor) -> Tensor:
        if not self.is_normalised:
            image = ((image - MEAN) / STD).permute(2, 0, 1)
            image = functional.pad(image, (0, SIDE - image.shape[-1], 0, SIDE - image.shape[-2])).unsqueeze(0)
        return functional.avg_pool2d(image, SIDE // GRID)


class Sam2Encoder(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        small = functional.avg_pool2d(image, SIDE // GRID)
        return 0 * small, 1 * small, 2 * small


class EfficientEncoder(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        large = functional.interpolate(images, (SIDE, SIDE), mode="bilinear")
        large = (255 * large - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)
        return functional.avg_pool2d(large, SIDE // GRID)


def segment(features: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (1, 3, GRID, GRID) and scores (1, 3) for a box, whose corners (2, 2) are in pixels of SIDE x SIDE."""
    (x0, y0), (x1, y1) = corners[0] * (GRID / SIDE), corners[1] * (GRID / SIDE)
    centre = torch.arange(GRID, dtype=torch.float32) + 0.5
    x, y = centre.view(1, 1, 1, GRID), centre.view(1, 1, GRID, 1)
    inside = ((x > x0) & (x < x1) & (y > y0) & (y < y1)).float()
    middle = inside * ((x - (x0 + x1) / 2).abs() < (x1 - x0) / 6) * ((y - (y0 + y1) / 2).abs() < (y1 - y0) / 6)
    mean = (features * middle).sum((2, 3), keepdim=True) / middle.sum().clamp(min=1.0)
    distance = ((features - mean) ** 2).sum(1, keepdim=True).sqrt()
    logits = (torch.tensor(DISTANCES).view(1, 3, 1, 1) - distance) * inside - 10 * (1 - inside)
    share = (logits > 0).float().sum((2, 3)) / inside.sum().clamp(min=1.0)
    return logits, torch.cat([share[:, :2], 0.1 + 0 * share[:, 2:]], 1)


class SamDecoder(nn.Module):
    """As SAM's own export: the masks are enlarged to SIDE, cut to the image, and brought to its size."""

    def forward(self, features, coords, labels, mask_input, has_mask, size):
        logits, scores = segment(features, coords[0] + 0 * labels[0, :, None])
        large = functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        used = torch.floor(SIDE / torch.max(size) * size + 0.5).to(torch.int64)
        large, size = large[..., : used[0], : used[1]], size.to(torch.int64)
        unused = 0 * (mask_input.sum() + has_mask.sum())
        masks = functional.interpolate(large, size=(size[0], size[1]), mode="bilinear", align_corners=False)
        return masks + unused, scores, logits


class Sam2Decoder(nn.Module):
    """Needs each of its features: the image is their difference."""

    def forward(self, features, first, second, coords, labels, mask_input, has_mask):
        logits, scores = segment(features - second + first, coords[0] + 0 * labels[0, :, None])
        return logits + 0 * (mask_input.sum() + has_mask.sum()), scores


class EfficientDecoder(nn.Module):
    def forward(self, features, coords, labels, size):
        logits, scores = segment(features, coords[0, 0] * SIDE / size.flip(0) + 0 * labels[0, 0, :, None])
        masks = functional.interpolate(logits, size=(size[0], size[1]), mode="bilinear", align_corners=False)
        return masks[None], scores[None]
