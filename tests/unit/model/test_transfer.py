"""A trained network becomes the start of another one with other classes."""

from __future__ import annotations

import pytest
import torch

from boxsup_dist.errors import CheckpointError, SettingError, WeightsError
from boxsup_dist.io import storage
from boxsup_dist.model.checkpoint import CheckpointState, save
from boxsup_dist.model.networks import NetworkSpec, SegmentationNetwork, build_network
from boxsup_dist.model.transfer import check_start, start_network
from boxsup_dist.model.weights import absolute_spec
from tests import networks

COCO = networks.spec("timm:test_resnet", 81, head_channels=8)
CONTEXT = networks.spec("timm:test_resnet", 60, head_channels=8)


@torch.no_grad()
def trained(spec: NetworkSpec, seed: int = 0) -> SegmentationNetwork:
    """A network in which every tensor, statistics and mean included, differs from a new one."""
    network = build_network(spec, "none")
    generator = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.add_(0.01 * torch.rand(value.shape, generator=generator) + 0.001)
    return network


def store(network: SegmentationNetwork, run_uri: str, epoch: int = 1) -> str:
    return save(run_uri, CheckpointState(epoch, 0, 0, network.spec, network.state_dict()))


def assert_taken_over(network: SegmentationNetwork, source: SegmentationNetwork) -> None:
    """Every tensor but those of the score layers is the source's, the scores are uniform, and all learns."""
    state, found = source.state_dict(), network.state_dict()
    assert state.keys() == found.keys()
    for name, value in found.items():
        assert name.startswith("score.") or torch.equal(value, state[name]), name
    assert network.training
    trains = {name for name, p in source.named_parameters() if p.requires_grad}
    assert {name for name, p in network.named_parameters() if p.requires_grad} == trains
    batch = torch.randint(0, 256, (1, 3, 5, 5), dtype=torch.uint8)
    assert torch.equal(network.eval()(batch), torch.zeros(1, network.spec.num_classes, 5, 5))


def test_all_but_the_score_layer_is_the_sources(tmp_path):
    source = trained(COCO)
    uri = store(source, str(tmp_path))
    assert_taken_over(start_network(CONTEXT, f"checkpoint:{uri}"), source)
    assert_taken_over(start_network(COCO, f"checkpoint:{uri}"), source)  # as many classes, yet others


def test_all_skips_of_fcn_start_from_zero(tmp_path):
    source = trained(networks.spec("fcn8s_vgg16", 5, head_channels=2))
    spec = networks.spec("fcn8s_vgg16", 4, head_channels=2)
    network = start_network(spec, f"checkpoint:{store(source, str(tmp_path))}")
    assert_taken_over(network, source)
    new = build_network(spec, "none").state_dict()
    assert all(torch.equal(v, new[name]) for name, v in network.state_dict().items() if name.startswith("score."))


def test_a_run_directory_gives_its_newest_whole_checkpoint(tmp_path):
    run = str(tmp_path / "coco81")
    store(trained(COCO, 1), run, epoch=2)
    newest = trained(COCO, 2)
    store(newest, run, epoch=10)
    torn = storage.join(run, "checkpoints", "epoch-011-step-00000")
    storage.write_bytes(storage.join(torn, "model.pt"), b"half")
    assert_taken_over(start_network(CONTEXT, f"checkpoint:{run}"), newest)
    with pytest.raises(CheckpointError, match="unfinished"):
        start_network(CONTEXT, f"checkpoint:{torn}")


def test_stride_and_dropout_may_differ(tmp_path):
    source = trained(networks.spec(COCO.name, 81, output_stride=16, head="aspp", head_channels=8, dropout=0.5))
    uri = store(source, str(tmp_path))
    network = start_network(
        networks.spec(COCO.name, 60, output_stride=8, head="aspp", head_channels=8, dropout=0.1), f"checkpoint:{uri}"
    )
    assert_taken_over(network, source)
    assert (network.output_stride, network.spec.dropout) == (8, 0.1)


@pytest.mark.parametrize(
    "other",
    [
        networks.spec("timm:resnet18", 60, head_channels=8),
        networks.spec(COCO.name, 60, head="aspp", head_channels=8),
        networks.spec(COCO.name, 60, head_channels=4),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_and_both_are_named(tmp_path, other):
    uri = store(trained(COCO), str(tmp_path))
    with pytest.raises(WeightsError, match="another network") as caught:
        start_network(other, f"checkpoint:{uri}")
    assert caught.value.file == uri
    assert caught.value.value == "timm:test_resnet, largefov of 8 channels"
    assert caught.value.expected == f"{other.name}, {other.head} of {other.head_channels} channels"


def test_layers_that_do_not_fit_are_an_error(tmp_path):
    source = trained(COCO)
    state = dict(source.state_dict())
    del state["head.fc7.bias"]
    uri = save(str(tmp_path), CheckpointState(1, 0, 0, source.spec, state))
    with pytest.raises(WeightsError, match=r"head\.fc7\.bias"):
        start_network(CONTEXT, f"checkpoint:{uri}")


@pytest.mark.parametrize("folder", ["", "nothing"])
def test_a_checkpoint_that_is_not_there_is_refused(tmp_path, folder):
    uri = str(tmp_path / folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint here.*run directory") as caught:
        start_network(CONTEXT, f"checkpoint:{uri}")
    assert caught.value.file == uri


def test_other_specs_are_those_of_pretrained_weights():
    torch.manual_seed(0)
    expected = build_network(CONTEXT, "none").state_dict()
    torch.manual_seed(0)
    found = start_network(CONTEXT, "none").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_paths_in_specs_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("checkpoint:runs/coco81/") == f"checkpoint:{tmp_path}/runs/coco81"
    assert absolute_spec("hed:hed.pth") == f"hed:{tmp_path}/hed.pth"
    assert absolute_spec("vgg.pth") == f"{tmp_path}/vgg.pth"
    unchanged = ["none", "timm", "package:efficientnet-lite0", "torchvision:IMAGENET1K_V1", "s3://b/vgg.pth", "", None]
    unchanged.append("checkpoint:s3://bucket/run")
    assert [absolute_spec(spec) for spec in unchanged] == unchanged


def test_the_check_before_a_run_finds_what_the_start_would_and_draws_no_random_numbers(tmp_path):
    uri = store(trained(COCO), str(tmp_path))
    rng = torch.get_rng_state()
    check_start(CONTEXT, f"checkpoint:{uri}")
    check_start(CONTEXT, "none")
    assert torch.equal(rng, torch.get_rng_state())
    with pytest.raises(WeightsError, match="another network"):
        check_start(networks.spec("timm:resnet18", 60, head_channels=8), f"checkpoint:{uri}")
    with pytest.raises(WeightsError, match="cannot read the weight file"):
        check_start(CONTEXT, str(tmp_path / "nothing.pth"))
    with pytest.raises(SettingError, match="no usable map of features") as caught:  # before anything is downloaded
        check_start(networks.spec("timm:test_vit_relpos", 60), "timm")
    assert caught.value.field == "network.name"
