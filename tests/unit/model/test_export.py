"""Exported networks compute what the network does, at any size of image, and one that does not is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from boxsup_dist.errors import InputError, SettingError
from boxsup_dist.model import export
from boxsup_dist.model.export import Comparison
from boxsup_dist.model.networks import SegmentationNetwork, network_from_state
from tests import networks
from tests.networks import build_network

CLASSES = ("background", "cat", "dog")
SIZES = [(1, 1), (1, 40), (16, 16), (17, 17), (33, 64), (50, 71)]


def make_network(name: str) -> SegmentationNetwork:
    torch.manual_seed(0)
    network = build_network(name, 3, output_stride=16 if name.startswith("timm") else None, head_channels=8,
                            weights="none")  # fmt: skip
    for key, parameter in network.named_parameters():
        if key.startswith("score") or key.endswith("pos_embed"):
            torch.nn.init.normal_(parameter)
    return network.eval()


@pytest.fixture(scope="module", params=["timm:test_resnet", "timm:test_convnext", "timm:test_vit3"])
def network(request: pytest.FixtureRequest) -> SegmentationNetwork:
    """Grids of corners and of patches, and position embeddings that are resampled to each image."""
    return make_network(request.param)


def pictures(smallest: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES if min(size) >= smallest]


@pytest.mark.parametrize("input_type", ["uint8", "float32"])
def test_onnx_is_the_network_at_any_size(
    network: SegmentationNetwork, input_type: export.InputType, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = str(tmp_path / "model.onnx")
    export.write_onnx(network, path, CLASSES, input_type)
    expected = [export.network_runner(network)(image) for image in pictures()]
    found = [export.onnx_runner(path, input_type)(image) for image in pictures()]
    comparison = export.compare(expected, found)
    export.check_equal(comparison, "onnx")
    assert comparison.max_abs_difference < 1e-4
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata[export.CLASS_NAMES]) == list(CLASSES)


def test_torch_export_is_the_network_at_any_size(network: SegmentationNetwork, tmp_path: Path) -> None:
    path = str(tmp_path / "model.pt2")
    export.write_torch(network, path, CLASSES)
    found = pictures(17 if network.grid.patches else 1)  # see write_torch
    expected = [export.network_runner(network)(image) for image in found]
    run = export.torch_runner(path)
    comparison = export.compare(expected, [run(image) for image in found])
    export.check_equal(comparison, "torch")
    assert comparison.max_abs_difference < 1e-4
    extra = {export.CLASS_NAMES: ""}
    program = torch.export.load(path, extra_files=extra)
    assert json.loads(extra[export.CLASS_NAMES]) == list(CLASSES)
    batch = torch.randint(0, 256, (3, 3, 20, 35), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(batch), network(batch), atol=1e-4, rtol=1e-4)


def test_same_padding_is_made_plain_without_changing_the_network() -> None:
    """The layers of the networks of the recipes (timm's tf_ models), whose padding depends on the size."""
    spec = networks.spec("timm:tf_efficientnet_lite0", 3, head_channels=8)
    torch.manual_seed(0)
    network = build_network(spec.name, 3, head_channels=8, weights="none")
    torch.nn.init.normal_(network.score.weight)
    network = network_from_state(spec, network.state_dict())
    plain = export._prepare(network)
    kinds = {type(layer).__name__ for layer in plain.modules()}
    assert "Conv2dSame" not in kinds
    assert "Conv2dSame" in {type(layer).__name__ for layer in network.modules()}
    with torch.no_grad():
        for size in SIZES:
            batch = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
            torch.testing.assert_close(plain(batch), network(batch), atol=1e-5, rtol=1e-5)


def test_a_network_in_training_mode_is_refused(tmp_path: Path) -> None:
    network = make_network("timm:test_resnet").train()
    with pytest.raises(ValueError, match="training mode"):
        export.write_torch(network, str(tmp_path / "model.pt2"), CLASSES)


def test_a_network_that_the_exporter_refuses_is_answered_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such operator\nin this graph")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    monkeypatch.setattr(torch.export, "export", refuse)
    network = make_network("timm:test_resnet")
    for write, name in ((export.write_onnx, "onnx"), (export.write_torch, "torch")):
        with pytest.raises(InputError, match=f"in the format {name}; .*found: 'no such operator'") as caught:
            write(network, str(tmp_path / "model"), CLASSES)
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "model.onnx").write_bytes(b"no model")  # what a runtime cannot open is refused too
    with pytest.raises(InputError, match="cannot be exported in the format onnx"):
        export.onnx_runner(str(tmp_path / "model.onnx"))


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(SettingError, match="onnxruntime"):
        export.onnx_runner(str(tmp_path / "model.onnx"))


def test_comparison_counts_over_all_pixels() -> None:
    first = np.zeros((2, 4, 5), np.float32)
    second = first.copy()
    first[0] = 1
    second[0] = 1
    second[1, 0, 0] = 3
    found = export.compare([first, first], [first, second])
    assert found == Comparison(2, 40, 3.0, 39 / 40)
    maps = export.compare([np.zeros((2, 2), np.uint8)], [np.array([[0, 0], [0, 1]], np.uint8)])
    assert maps == Comparison(1, 4, None, 0.75)
    with pytest.raises(InputError, match="another shape"):
        export.compare([first], [first[:, 1:]])


@pytest.mark.parametrize(
    "comparison",
    [Comparison(1, 10, 0.5, 1.0), Comparison(1, 10, float("nan"), 1.0), Comparison(1, 10, None, 0.9)],
    ids=str,
)
def test_a_model_that_differs_is_refused(comparison: Comparison) -> None:
    with pytest.raises(InputError, match="not published"):
        export.check_equal(comparison, "onnx")


def test_a_model_that_agrees_is_taken() -> None:
    export.check_equal(Comparison(1, 10, 1e-5, 1.0), "onnx")
    export.check_equal(Comparison(1, 10, None, 1.0), "mlflow")
