"""FCN-32s, 16s and 8s: against the released networks written down plainly, alignment, first weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxsup_dist.errors import SettingError
from boxsup_dist.model import weights
from boxsup_dist.model.fcn import FcnHead, FcnScore
from boxsup_dist.model.grids import FcnGrid
from boxsup_dist.model.networks import NetworkSpec, SegmentationNetwork, network_from_state
from tests import networks
from tests.networks import build_network

NAMES = {"fcn32s_vgg16": 32, "fcn16s_vgg16": 16, "fcn8s_vgg16": 8}
FINAL_CROP = {32: 19, 16: 27, 8: 31}  # the released networks' offsets
NUM_CLASSES = 3


def build(name: str, **settings) -> SegmentationNetwork:
    """A network with a narrow head and, unlike a new one, scores that differ."""
    torch.manual_seed(0)
    network = build_network(name, NUM_CLASSES, **{"head_channels": 8, "weights": "none", **settings}).eval()
    randomise_scores(network)
    return network


@torch.no_grad()
def randomise_scores(network: SegmentationNetwork) -> None:
    """Scores of all streams of about the same size, and upsampling that is no longer bilinear."""
    for name, layer in network.score.named_children():
        scale = {"pool4": 100.0, "pool3": 10_000.0}.get(name, 1.0)
        for parameter in layer.parameters():
            parameter.add_(0.1 * scale * torch.randn(parameter.shape))


@pytest.fixture(scope="module", params=NAMES)
def network(request) -> SegmentationNetwork:
    return build(request.param)


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def bilinear_deconvolution(scores: Tensor, stride: int) -> Tensor:
    """Caffe's fixed deconvolution: a bilinear kernel of twice the stride, each class by itself."""
    ramp = 1 - (torch.arange(2 * stride) - (stride - 0.5)).abs() / stride
    kernel = torch.outer(ramp, ramp).expand(scores.shape[1], 1, -1, -1)
    return F.conv_transpose2d(scores, kernel, stride=stride, groups=scores.shape[1])


def plain_fcn(network: SegmentationNetwork, batch: Tensor) -> Tensor:
    """The released network from the weights alone: pad 100, five pools, three streams, deconvolutions, crops."""
    state, stride = network.state_dict(), network.output_stride

    def convolve(x: Tensor, key: str, padding: int = 0) -> Tensor:
        return F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=padding)

    x = (batch.float() - state["mean"]) / state["std"]
    pools, index = [], 0
    for length in (2, 2, 3, 3, 3):
        for _ in range(length):
            x = F.relu(convolve(x, f"body.{index}", padding=100 if index == 0 else 1))
            index += 2
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)
        index += 1
    x = F.relu(convolve(F.relu(convolve(x, "head.fc6")), "head.fc7"))
    scores = convolve(x, "score.fc7")
    for step, (pool, scale, crop) in enumerate([("pool4", 0.01, 5), ("pool3", 0.0001, 9)]):
        if stride <= 16 >> step:
            upsampling = state[f"score.{'up_fc7' if step == 0 else 'up_pool4'}.weight"]
            scores = F.conv_transpose2d(scores, upsampling, stride=2)
            skip = convolve(pools[3 - step] * scale, f"score.{pool}")
            scores = scores + skip[:, :, crop : crop + scores.shape[2], crop : crop + scores.shape[3]]
    crop = FINAL_CROP[stride]
    full = bilinear_deconvolution(scores, stride)
    return full[:, :, crop : crop + batch.shape[2], crop : crop + batch.shape[3]]


@torch.inference_mode()
def test_equals_the_released_network_written_down_plainly(network):
    batch = images(1, 3, 3, 37)
    expected = plain_fcn(network, batch)
    assert expected.shape == (1, NUM_CLASSES, 3, 37) and expected.std() > 0.01
    assert torch.allclose(network(batch), expected, atol=1e-4 * expected.abs().max().item())


@torch.inference_mode()
def test_one_pixel(network):
    logits = network(images(1, 3, 1, 1))
    assert logits.shape == (1, NUM_CLASSES, 1, 1) and torch.isfinite(logits).all()


def without_convolutions(name: str, stream: str) -> SegmentationNetwork:
    """The network's geometry alone: three colours go through averages for pools, and one stream is scored.

    Convolutions of odd kernels with half of that as padding move nothing, which is asserted where they are left out.
    """
    network = build(name)
    for index, layer in enumerate(network.body):
        if isinstance(layer, nn.Conv2d):
            assert (layer.kernel_size, layer.padding, layer.stride) == ((3, 3), (1, 1), (1, 1))
        network.body[index] = nn.AvgPool2d(2, 2, ceil_mode=True) if isinstance(layer, nn.MaxPool2d) else nn.Identity()
    network.mean.zero_()
    network.head = FcnHead(3, 3, 0.0).eval()
    score = FcnScore(network.output_stride, 3, 3)
    scales = {"fc7": 1.0, "pool4": 0.01, "pool3": 0.0001}
    with torch.no_grad():
        for layer in (network.head.fc6, network.head.fc7):
            layer.weight.zero_()
            middle = layer.kernel_size[0] // 2
            layer.weight[range(3), range(3), middle, middle] = 1.0
        for skip in ("pool4", "pool3"):
            if hasattr(score, skip):
                setattr(score, skip, nn.Conv2d(3, 3, 1))
                nn.init.zeros_(getattr(score, skip).weight)
                nn.init.zeros_(getattr(score, skip).bias)
        getattr(score, stream).weight[range(3), range(3), 0, 0] = 1 / scales[stream]
    network.score = score
    return network


STREAMS = [
    (name, stream)
    for name, stride in NAMES.items()
    for stream in ("fc7", "pool4", "pool3")[: {32: 1, 16: 2, 8: 3}[stride]]
]


@pytest.mark.parametrize("name, stream", STREAMS)
@pytest.mark.parametrize("height, width", [(320, 333), (293, 346)])
@torch.inference_mode()
def test_every_stream_puts_its_cells_on_their_pixels(name, stream, height, width):
    """A ramp of colour comes out as the same ramp, so that no stream is shifted, at sizes with any remainder."""
    network = without_convolutions(name, stream)
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    ramps = torch.stack([x, y, x + y])[None]
    logits = network(ramps)
    assert logits.shape == ramps.shape
    inside = (..., slice(80, height - 80), slice(80, width - 80))  # where no cell with padding has a share
    assert torch.allclose(logits[inside], ramps[inside], atol=1e-2)


@pytest.mark.parametrize("stride, cells", [(32, 2), (16, 6), (8, 14)])
def test_upsampling_is_the_bilinear_deconvolution_with_the_released_crop(stride, cells):
    scores = torch.randn(2, 4, cells, cells + 1, generator=torch.Generator().manual_seed(0))
    crop = FINAL_CROP[stride]
    expected = bilinear_deconvolution(scores, stride)[:, :, crop : crop + 50, crop : crop + 58]
    assert torch.allclose(FcnGrid(stride).upsample(scores, 50, 58), expected, atol=1e-6)


def test_x2_upsampling_begins_bilinear_and_is_learned():
    score = FcnScore(8, 4, 5)
    scores = torch.randn(1, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    for layer in (score.up_fc7, score.up_pool4):
        assert torch.allclose(layer(scores), bilinear_deconvolution(scores, 2), atol=1e-6)
        assert layer.weight.requires_grad


def test_a_new_network_is_uniform_and_every_layer_learns():
    torch.manual_seed(0)
    network = build_network("fcn8s_vgg16", NUM_CLASSES, head_channels=8, weights="none")
    logits = network(images(1, 3, 4, 4))
    assert torch.equal(logits, torch.zeros(1, NUM_CLASSES, 4, 4))
    randomise_scores(network)
    network(images(1, 3, 4, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_sizes_are_those_of_the_paper():
    """Table 1 of Long et al.: 134 million parameters."""
    with torch.device("meta"):
        network = build_network("fcn32s_vgg16", 21, weights="none")
    assert network.head.fc6.weight.shape == (4096, 512, 7, 7)
    assert sum(p.numel() for p in network.parameters()) == 14_714_688 + 102_764_544 + 16_781_312 + 21 * 4097
    for name, stride in NAMES.items():
        spec = networks.spec(name, 21)
        assert (spec.output_stride, spec.head_channels, spec.dropout) == (stride, 4096, 0.5)


def test_fc_layers_start_from_the_whole_classifier(monkeypatch):
    state = {f"features.{k}": v for k, v in build("fcn32s_vgg16").body.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for layer, inputs in ((0, 25088), (3, 4096)):
        state[f"classifier.{layer}.weight"] = torch.rand(4096, 1, generator=generator).expand(4096, inputs).clone()
        state[f"classifier.{layer}.bias"] = torch.rand(4096, generator=generator)
    monkeypatch.setattr(weights, "read_state_dict", lambda uri: state)
    network = build_network("fcn16s_vgg16", NUM_CLASSES, weights="torchvision:IMAGENET1K_V1@file.pth").eval()
    assert torch.equal(network.body[28].weight, state["features.28.weight"])
    pool5 = torch.rand(1, 512, 7, 7, generator=generator)
    hidden = F.relu(F.linear(pool5.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"]))
    hidden = F.relu(F.linear(hidden, state["classifier.3.weight"], state["classifier.3.bias"]))
    with torch.inference_mode():
        found = network.head((pool5, pool5, pool5))[2].flatten(1)
    assert torch.allclose(found, hidden, rtol=1e-4)


@torch.inference_mode()
def test_a_state_dict_restores_the_network_in_channels_last_and_mixed_precision(network):
    again = network_from_state(NetworkSpec.from_dict(network.spec.to_dict()), network.state_dict())
    batch = images(1, 3, 2, 3)
    expected = network(batch)
    assert torch.equal(again(batch), expected)
    again.to(memory_format=torch.channels_last)
    size = expected.abs().max().item()
    assert torch.allclose(again(batch), expected, atol=1e-4 * size)
    with torch.autocast("cpu", torch.bfloat16):
        found = again(batch)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=0.3 * size)  # three digits in each of 16 random layers


@pytest.mark.parametrize("settings", [{"output_stride": 8}, {"head": "aspp"}])
def test_settings_of_other_networks_are_refused(settings):
    with pytest.raises(SettingError) as caught:
        build("fcn32s_vgg16", **settings)
    assert caught.value.field.removeprefix("network.") in settings
