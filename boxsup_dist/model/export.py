"""The network as one file that runs without this package: torch.export (.pt2) and ONNX (.onnx).

Both take `images` (N, 3, H, W), RGB 0..255, uint8 or float32 as chosen, N, H and W from 1, and return `logits` float32
(N, C, H, W): normalisation, padding and upsampling are inside. The file also holds the names of the classes.
Every written file is compared with the network before it is published: see `check_equal`.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from boxsup_dist.config import InputType
from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.model.grids import CellGrid
from boxsup_dist.model.inference import image_to_batch
from boxsup_dist.model.networks import SegmentationNetwork

Logits = NDArray[np.float32]
Runner = Callable[[NDArray[np.uint8]], Logits]
"""Logits float32 (C, H, W) of one image, uint8 RGB (H, W, 3)."""

CLASS_NAMES = "class_names"  # key in the files: a JSON list, background first
OPSET = 18
SAME_PADDED: dict[str, type[nn.Module]] = {"Conv2dSame": nn.Conv2d, "AvgPool2dSame": nn.AvgPool2d}  # in timm
EXAMPLE_SIZE = (75, 110)  # px; not a multiple of any stride, so that tracing cannot specialise on it
# Another runtime adds up in another order: differences of 1e-5 measured on logits of some tens. Labels differ only
# where two classes are that close.
MAX_ABS_DIFFERENCE = 1e-3
MIN_SHARE_EQUAL = 0.9999


def write_torch(
    network: SegmentationNetwork, path: str, class_names: Sequence[str], input_type: InputType = "uint8"
) -> None:
    """Write the network as a .pt2 file; torch.export.load(path).module()(images) runs it.

    A file of a network with a grid of patches (ConvNeXt, transformers) takes only images whose sides are longer than
    one stride.

    Args:
        network: In evaluation mode.
        path: Local file to write.
        class_names: Names of the classes, background first.
        input_type: Type of `images`.

    Raises:
        InputError: This network cannot be exported.
    """
    auto = torch.export.Dim.AUTO
    with _refusals("torch"), _quiet(), torch.no_grad():
        program = torch.export.export(
            _prepare(network), (_example(2, input_type),), dynamic_shapes=({0: auto, 2: auto, 3: auto},), strict=False
        )
        torch.export.save(program, path, extra_files={CLASS_NAMES: json.dumps(list(class_names))})


def torch_runner(path: str, input_type: InputType = "uint8") -> Runner:
    """A function that runs a .pt2 file on the CPU."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(image: NDArray[np.uint8]) -> Logits:
        logits: Logits = module(image_to_batch(image).contiguous().to(_dtype(input_type)))[0].numpy()
        return logits

    return run


def write_onnx(
    network: SegmentationNetwork, path: str, class_names: Sequence[str], input_type: InputType = "uint8"
) -> None:
    """Write the network as an ONNX file with the weights inside. Arguments as in `write_torch`.

    torch's TorchScript exporter traces it: sizes become operators of the graph, so that they stay free. The newer
    exporter keeps sizes as symbolic expressions, which takes minutes on the dilated backbones.

    Raises:
        SettingError: The package onnx is not installed.
        InputError: This network cannot be exported.
    """
    from torch.onnx.utils import register_custom_op_symbolic

    onnx = _require("onnx")
    free = {0: "batch", 2: "height", 3: "width"}
    register_custom_op_symbolic("aten::_upsample_bicubic2d_aa", _smooth_bicubic, OPSET)
    with _refusals("onnx"), _quiet(), torch.no_grad():
        torch.onnx.export(
            _prepare(network),
            (_example(1, input_type),),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": free, "logits": free},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(path)
    model.metadata_props.add(key=CLASS_NAMES, value=json.dumps(list(class_names)))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def onnx_runner(path: str, input_type: InputType = "uint8") -> Runner:
    """A function that runs an ONNX file on the CPU.

    Raises:
        SettingError: The package onnxruntime is not installed.
        InputError: The file cannot be run.
    """
    runtime = _require("onnxruntime")
    with _refusals("onnx"):
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: NDArray[np.uint8]) -> Logits:
        batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(input_type)
        logits: Logits = session.run(["logits"], {"images": batch})[0][0]
        return logits

    return run


def network_runner(network: SegmentationNetwork) -> Runner:
    """A function that runs the network itself, on its device."""

    @torch.no_grad()
    def run(image: NDArray[np.uint8]) -> Logits:
        logits: Logits = network(image_to_batch(image, network.device))[0].cpu().numpy()
        return logits

    return run


@dataclass(frozen=True)
class Comparison:
    """How far two runners agree on some images."""

    num_images: int
    num_pixels: int
    max_abs_difference: float | None  # of logits; None where only label maps were compared
    share_equal: float  # of pixels with the same class


def compare(expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> Comparison:
    """Compare logits (C, H, W), or label maps (H, W), of the same images.

    Raises:
        InputError: The shapes differ.
    """
    differences, num_equal, num_pixels = [], 0, 0
    for first, second in zip(expected, found, strict=True):
        if first.shape != second.shape:
            raise InputError("the exported model gives another shape", value=second.shape, expected=str(first.shape))
        if first.ndim == 3:
            differences.append(float(np.abs(first - second).max()))
            first, second = first.argmax(0), second.argmax(0)
        num_equal += int((first == second).sum())
        num_pixels += first.size
    largest = float(np.max(differences)) if differences else None
    return Comparison(len(expected), num_pixels, largest, num_equal / num_pixels)


def check_equal(comparison: Comparison, name: str) -> None:
    """Check that the exported model `name` computes what the network does.

    Raises:
        InputError: It does not, and must not be published.
    """
    difference = comparison.max_abs_difference
    # Written so that nan is refused.
    if difference is not None and not difference <= MAX_ABS_DIFFERENCE:
        raise InputError(f"the {name} model does not compute what the network does; it is not published",
                         field="max_abs_difference", value=difference, expected=f"<= {MAX_ABS_DIFFERENCE}")  # fmt: skip
    if not comparison.share_equal >= MIN_SHARE_EQUAL:
        raise InputError(f"the {name} model does not compute what the network does; it is not published",
                         field="share_equal", value=comparison.share_equal,
                         expected=f">= {MIN_SHARE_EQUAL}")  # fmt: skip


def _require(package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise SettingError(
            f"the package {package} is not installed", field="formats", value="onnx", expected=f"pip install {package}"
        ) from None


class _GatheredGrid(CellGrid):
    """Crops by gathering: a slice would bind the program to images that need padding, or to those that do not."""

    def upsample(self, score_map: Tensor, height: int, width: int) -> Tensor:
        extra = 0 if self.patches else 1
        full = super().upsample(score_map, *((cells - extra) * self.stride + extra for cells in score_map.shape[2:]))
        rows, columns = torch.arange(height, device=full.device), torch.arange(width, device=full.device)
        return full.index_select(2, rows).index_select(3, columns)


def _prepare(network: SegmentationNetwork) -> SegmentationNetwork:
    """A copy on the CPU that computes the same logits without a decision on the size of an image.

    TensorFlow's "same" padding, in some of timm's models, depends on the size of the input of a layer. It depends on
    the kernel alone at stride 1, and for the s * k + 1 pixels that a grid of corners pads to; constant padding keeps
    the exporter's algebra of sizes short.

    Raises:
        ValueError: The network is in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode: call network.eval() before exporting")
    network = copy.deepcopy(network).cpu()
    if isinstance(network.grid, CellGrid):
        network.grid = _GatheredGrid(network.grid.stride, network.grid.patches)
        for parent in list(network.modules()):
            for name, layer in parent.named_children():
                if type(layer).__name__ in SAME_PADDED and (not network.grid.patches or _pair(layer.stride) == (1, 1)):
                    setattr(parent, name, _padded_plainly(layer))
    return network


def _padded_plainly(layer: Any) -> nn.Module:
    """Zero padding, then the same layer with the same weights as torch's own class, which does not pad."""
    rows, columns = (
        d * (k - 1) for k, d in zip(_pair(layer.kernel_size), _pair(getattr(layer, "dilation", 1)), strict=True)
    )
    plain = copy.copy(layer)
    plain.__class__ = SAME_PADDED[type(layer).__name__]
    pad = nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return nn.Sequential(pad, plain)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _dtype(input_type: InputType) -> torch.dtype:
    return torch.uint8 if input_type == "uint8" else torch.float32


def _example(num_images: int, input_type: InputType) -> Tensor:
    return torch.zeros(num_images, 3, *EXAMPLE_SIZE, dtype=_dtype(input_type))


def _smooth_bicubic(g: Any, values: Any, size: Any, align_corners: Any, *scales: Any) -> Any:
    """ONNX's operator for torch's antialiased bicubic resampling, of a transformer's position embeddings.

    torch has none for it. As torch, Keys' cubic has a = -0.5 there, and weights outside the map are left out.
    """
    constants = {name: g.op("Constant", value_t=torch.tensor(value)) for name, value in (("0", [0]), ("2", [2]))}
    parts = [g.op("Unsqueeze", side, constants["0"]) for side in size.node().inputs()]
    channels = g.op("Slice", g.op("Shape", values), constants["0"], constants["2"])
    sizes = g.op("Concat", channels, *parts, axis_i=0)
    empty = g.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    return g.op("Resize", values, empty, empty, sizes, mode_s="cubic", cubic_coeff_a_f=-0.5, antialias_i=1,
                exclude_outside_i=1, coordinate_transformation_mode_s="half_pixel")  # fmt: skip


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Turn the exporters' many errors into one line."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"this network cannot be exported in the format {name}", field="formats", value=reason[:200],
                         expected="another format; mlflow takes every network") from error  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' notes on shapes and deprecations: their files are compared with the network anyway."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
