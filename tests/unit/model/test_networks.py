"""Networks: sizes, alignment, uniform start, frozen batch norms, parameter groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from boxsup_dist.config import OptimizerSettings
from boxsup_dist.errors import SettingError, WeightsError
from boxsup_dist.model import networks as model_networks
from boxsup_dist.model.heads import LargeFov
from boxsup_dist.model.networks import (
    NetworkSpec,
    SegmentationNetwork,
    network_from_state,
    parameter_groups,
)
from tests import networks
from tests.networks import build_network

LITE0 = "timm:tf_efficientnet_lite0"
VGG = "deeplab_largefov_vgg16"
SIZES = [(1, 1), (1, 40), (16, 17), (33, 32), (50, 67)]


def small(**settings) -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network(LITE0, 5, **{"head_channels": 8, "weights": "none", **settings})


def unfrozen(spec: NetworkSpec) -> SegmentationNetwork:
    return model_networks.build_network(replace(spec, freeze_batch_norm=False), "none")


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [LITE0, "timm:resnet18", "timm:convnext_atto"])
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("head", ["largefov", "aspp"])
def test_any_size_gives_uniform_logits_of_that_size(name, output_stride, head):
    network = build_network(name, 5, output_stride=output_stride, head=head, head_channels=4, weights="none").eval()
    for height, width in SIZES:
        logits = network(images(2, 3, height, width))
        assert logits.shape == (2, 5, height, width)
        assert torch.equal(logits, torch.zeros_like(logits))


def test_vgg16_is_the_published_network():
    network = build_network(VGG, 21, weights="none")
    head = network.head
    assert isinstance(head, LargeFov)
    # 20.5 million parameters and output stride 8 are what Chen et al. (2015) state for LargeFOV.
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(20.5e6, rel=0.01)
    assert head.fc6.kernel_size == (3, 3) and head.fc6.dilation == (12, 12) and head.fc6.out_channels == 1024
    network.eval()
    assert network.score_map(images(1, 3, 41, 33)).shape == (1, 21, 6, 5)
    for height, width in SIZES[:4]:
        assert network(images(1, 3, height, width)).shape == (1, 21, height, width)


@pytest.mark.parametrize("stride", [8, 16])
def test_upsampling_puts_every_cell_on_its_pixel(stride):
    network = small(output_stride=stride)
    scores = torch.randn(1, 5, 3, 4)
    logits = network.upsample(scores, 2 * stride + 1, 3 * stride + 1)
    assert torch.allclose(logits[:, :, ::stride, ::stride], scores, atol=1e-5)


def test_upsampling_puts_patches_in_the_middle_of_their_pixels():
    network = build_network("timm:convnext_atto", 2, head_channels=4, weights="none")
    scores = torch.arange(5.0).expand(1, 2, 3, 5)
    logits = network.upsample(scores, 48, 80)
    for cell in range(5):
        middle = logits[..., 16 * cell + 7 : 16 * cell + 9].mean(-1)
        assert torch.allclose(middle, torch.tensor(float(cell)), atol=0.05)


@pytest.mark.parametrize("head", ["largefov", "aspp"])
@pytest.mark.parametrize("name", [LITE0, "timm:resnet18", VGG])
def test_mirrored_images_give_mirrored_logits(name, head):
    """With mirror-symmetric kernels and a whole number of cells nothing in the network shifts to a side."""
    torch.manual_seed(0)
    head = "largefov" if name == VGG else head
    weights = None if name == LITE0 else "none"
    network = build_network(name, 3, head=head, head_channels=4, weights=weights).eval()
    torch.nn.init.normal_(network.score.weight)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.copy_((parameter + parameter.flip(2, 3)) / 2)
    side = 4 * network.output_stride + 1
    batch = images(1, 3, side, side)
    logits, mirrored = network(batch), network(batch.flip(2, 3)).flip(2, 3)
    assert logits.std() > 0
    assert torch.allclose(logits, mirrored, atol=1e-3 * logits.std().item())


def test_normalisation_is_inside_and_float_equals_uint8():
    network = small(weights=None).eval()
    torch.nn.init.normal_(network.score.weight)
    batch = images(1, 3, 33, 33)
    assert torch.equal(network(batch), network(batch.float()))
    assert network.mean.flatten().tolist() == [127.0] * 3 and network.std.flatten().tolist() == [128.0] * 3


def test_frozen_batch_norm_makes_results_independent_of_the_batch():
    network = small(weights=None, dropout=0.0).train()
    torch.nn.init.normal_(network.score.weight)
    before = {key: value.clone() for key, value in network.named_buffers()}
    batch = images(3, 3, 33, 49)
    together = network(batch)
    alone = torch.cat([network(batch[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-4)
    together.sum().backward()
    assert all(torch.equal(before[key], value) for key, value in network.named_buffers())
    assert all(p.grad is None for key, p in network.named_parameters() if ".bn" in key)


def test_unfrozen_batch_norm_learns():
    network = unfrozen(small().spec).train()
    before = network.body.extractor.bn1.running_mean.clone()
    network(images(2, 3, 33, 33))
    assert not torch.equal(before, network.body.extractor.bn1.running_mean)


def test_parameter_groups_hold_every_trainable_parameter_once():
    settings = OptimizerSettings(lr=0.1, head_lr_multiplier=3.0, score_lr_multiplier=4.0, bias_lr_multiplier=1.5)
    factors = {"body": 1, "head": 3, "score": 4}
    for network in (small(), unfrozen(networks.spec("timm:resnet18", 3))):
        groups = parameter_groups(network, settings)
        ids = [id(p) for group in groups for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in network.parameters() if p.requires_grad)
        name_of = {id(p): key for key, p in network.named_parameters()}
        for group in groups:
            for parameter in group["params"]:
                part, _, rest = name_of[id(parameter)].partition(".")
                bias = 1.5 if rest.endswith("bias") else 1
                assert group["lr"] == pytest.approx(0.1 * factors[part] * bias)
                assert group["weight_decay"] == (5e-4 if parameter.ndim > 1 else 0.0)
        torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def test_the_default_rates_are_those_of_the_published_deeplab():
    """train.prototxt of DeepLab-LargeFOV: lr_mult 1 and 2 (biases, without decay), 10 and 20 in the last layer."""
    groups = parameter_groups(build_network(VGG, 21, weights="none"), OptimizerSettings())
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert found == {
        "body_weights": (1e-3, 5e-4),
        "body_biases": (2e-3, 0.0),
        "head_weights": (1e-3, 5e-4),
        "head_biases": (2e-3, 0.0),
        "score_weights": (1e-2, 5e-4),
        "score_biases": (2e-2, 0.0),
    }


def test_network_from_state_restores_and_draws_no_random_numbers():
    network = small(weights=None).eval()
    torch.nn.init.normal_(network.score.weight)
    rng = torch.get_rng_state()
    again = network_from_state(NetworkSpec.from_dict(network.spec.to_dict()), network.state_dict())
    assert torch.equal(rng, torch.get_rng_state())
    batch = images(1, 3, 20, 30)
    assert not again.training and torch.equal(network(batch), again(batch))


def test_network_from_state_of_another_network_is_an_error():
    with pytest.raises(WeightsError, match="another network"):
        network_from_state(networks.spec(LITE0, 6, head_channels=8), small().state_dict())
    with pytest.raises(SettingError, match="unexpected keyword"):
        NetworkSpec.from_dict({"name": LITE0, "num_classes": 5, "colour": 1})


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"name": "resnet18"}, "name"),
        ({"name": "timm:no_such_model"}, "name"),
        ({"name": "timm:vit_relpos_small_patch16_224"}, "name"),
        ({"head_channels": 0}, "head_channels"),
        ({"dropout": -0.1}, "dropout"),
        ({"output_stride": 0}, "output_stride"),
        ({"name": VGG, "output_stride": 16}, "output_stride"),
        ({"name": VGG, "head": "aspp"}, "head"),
        ({"output_stride": 4}, "output_stride"),
        ({"num_classes": 1}, "num_classes"),
        ({"num_classes": 256}, "num_classes"),
        ({"dropout": 1.0}, "dropout"),
        ({"head": "fpn"}, "head"),
    ],
)
def test_bad_settings_name_their_field(settings, field):
    with pytest.raises(SettingError) as caught:
        build_network(**{"name": LITE0, "num_classes": 5, "weights": "none", **settings})
    assert caught.value.field == f"network.{field}"


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_a_batch_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="RGB"):
        small()(torch.zeros(shape))


def test_settings_that_are_not_set_take_the_default_of_the_network():
    expected = {VGG: (8, 1024, 0.5), "fcn16s_vgg16": (16, 4096, 0.5), LITE0: (16, 256, 0.1)}
    for name, values in expected.items():
        found = networks.spec(name, 21)
        assert (found.output_stride, found.head_channels, found.dropout) == values
    for given in ({"output_stride": 8}, {"head": "aspp"}, {"head_channels": 7}, {"dropout": 0.0}):
        assert given.items() <= networks.spec(LITE0, 21, **given).to_dict().items()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("timm:resnet51", "timm:resnet50"), ("fcn8_vgg16", "fcn8s_vgg16"), ("resnet18", "timm:MODEL")],
)
def test_a_mistyped_name_is_answered_with_close_ones(name, expected):
    with pytest.raises(SettingError) as caught:
        networks.spec(name, 21)
    assert (caught.value.field, caught.value.value) == ("network.name", name)
    assert expected in caught.value.expected


def test_a_checkpoint_of_an_earlier_version_still_names_its_network():
    """state.json of commit b08f294."""
    stored = {"name": LITE0, "num_classes": 21, "output_stride": 16, "head": "largefov", "head_channels": 256,
              "dropout": 0.1, "freeze_batch_norm": True}  # fmt: skip
    assert NetworkSpec.from_dict(stored) == networks.spec(LITE0, 21)
    assert networks.spec(LITE0, 21).to_dict() == stored
