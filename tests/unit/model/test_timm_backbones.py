"""timm's models as networks: which families work, with images, crops, weight files and checkpoints of any kind."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from boxsup_dist.config import OptimizerSettings
from boxsup_dist.errors import SettingError, WeightsError
from boxsup_dist.model import weights
from boxsup_dist.model.networks import network_from_state, parameter_groups
from boxsup_dist.model.timm_backbones import timm_strides
from boxsup_dist.training.step import Placer, compute_gradients
from tests import networks
from tests.networks import build_network

DILATED = (8, 16)
# The smallest model of each family, and the output strides that it can have.
FAMILIES = {
    "deit_tiny_distilled_patch16_224": (16,),
    "edgenext_xx_small": (32,),
    "eva02_tiny_patch14_224": (14,),
    "mobilevit_xxs": DILATED,
    "pvt_v2_b0": (32,),
    "swin_tiny_patch4_window7_224": (32,),
    "test_byobnet": DILATED,
    "test_convnext": DILATED,
    "test_efficientnet": DILATED,
    "test_mambaout": (32,),
    "test_nfnet": DILATED,
    "test_resnet": DILATED,
    "test_vit3": (16,),
    "vit_small_patch14_dinov2": (14,),
    "vit_small_patch16_dinov3": (16,),
    "vit_tiny_r_s16_p8_224": (32,),
    "xcit_nano_12_p16_224": (16,),
}
REFUSED = ["beit_base_patch16_224", "cait_xxs24_224", "test_coatnet", "test_maxvit", "test_vit_relpos"]


@pytest.mark.parametrize("model", FAMILIES)
def test_a_family_trains_predicts_and_is_stored(model: str) -> None:
    assert timm_strides(model) == FAMILIES[model]
    network = build_network(f"timm:{model}", 3, head_channels=4, weights="none", dropout=0.0)
    assert network.output_stride == FAMILIES[model][-1]
    torch.nn.init.normal_(network.score.weight)
    check_step(network)
    restored = network_from_state(network.spec, network.state_dict())
    network.eval()
    for size in ((1, 1), (45, 61)):  # no multiples of any stride
        images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
        with torch.inference_mode():
            logits = network(images)
            assert logits.shape == (1, 3, *size) and logits.isfinite().all()
            assert torch.equal(logits, restored(images))


def check_step(network) -> None:
    """A step of a crop that is no multiple of the stride gives a gradient to every parameter in the right group."""
    groups = {group["name"]: group for group in parameter_groups(network, OptimizerSettings(lr=0.1))}
    owner = {id(p): name for name, group in groups.items() for p in group["params"]}
    rng = np.random.default_rng(0)
    crops, label_maps = rng.integers(0, 256, (2, 45, 61, 3), np.uint8), rng.integers(0, 3, (2, 45, 61), np.uint8)
    batch = Placer(torch.device("cpu")).place(crops, label_maps)
    sums = compute_gradients(network, batch).sums()
    assert sums.images == 0 and np.isfinite(sums.loss)
    for key, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
            part, _, kind = owner[id(parameter)].partition("_")
            assert part == key.partition(".")[0]
            assert kind != "weights" or not key.endswith(("pos_embed", "cls_token", "reg_token", "bias_table")), key
        else:
            assert id(parameter) not in owner
    assert groups["score_weights"]["lr"] == pytest.approx(1.0) and groups["body_weights"]["lr"] == 0.1


@pytest.mark.parametrize("model", REFUSED)
def test_a_model_for_images_of_one_size_is_refused_by_its_name(model: str) -> None:
    with pytest.raises(SettingError, match="for images of any size") as caught:
        build_network(f"timm:{model}", 3, weights="none")
    assert caught.value.field == "network.name" and len(str(caught.value).splitlines()) == 1


def test_a_stride_that_a_model_has_not_is_refused_with_what_it_has() -> None:
    with pytest.raises(SettingError, match=r"network.output_stride; found: 16; expected: 14, or not set"):
        networks.spec("timm:vit_small_patch14_dinov2", 3, output_stride=16)
    with pytest.raises(SettingError, match=r"found: 14; expected: one of \(8, 16\)"):
        networks.spec("timm:test_resnet", 3, output_stride=14)
    with pytest.raises(SettingError, match=r"levit_128s has no usable map.*found: .a stride of 64 px, above 32"):
        networks.spec("timm:levit_128s", 3)


def small_values(model: str) -> dict[str, Tensor]:
    """A state dict in timm's names, classifier included; the model is built without memory."""
    generator = torch.Generator().manual_seed(3)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in timm.create_model(model).state_dict().items()}
    return {key: torch.rand(shape, generator=generator) / 50 for key, shape in shapes.items()}


def from_file(model: str, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The backbone's tensors when it starts from a file with this state dict."""
    monkeypatch.setattr(weights, "read_state_dict", lambda uri: state)
    network = build_network(f"timm:{model}", 2, head_channels=4, weights="file.pth")
    found: dict[str, Tensor] = network.body.extractor.state_dict()
    return found


@pytest.mark.parametrize(
    "model",
    [
        "eva02_tiny_patch14_224",
        "swin_tiny_patch4_window7_224",
        "test_convnext",
        "test_vit3",
        "vit_small_patch16_dinov3",
    ],
)
def test_a_file_in_the_names_of_timm_is_taken_as_it_is(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = small_values(model)
    given = {key.replace(".", "_"): value for key, value in state.items()}
    for key, value in from_file(model, state, monkeypatch).items():
        assert torch.equal(value, given[key.replace(".", "_")]), key


def test_the_published_files_of_dinov2_are_read_in_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of https://github.com/facebookresearch/dinov2; position embeddings of images of 224 px instead of 518."""
    model = "vit_small_patch14_dinov2"
    state = small_values(model)
    state["pos_embed"] = torch.rand(1, 1 + 16 * 16, 384)
    found = from_file(model, {**state, "mask_token": torch.zeros(1, 384)}, monkeypatch)
    resampled = resample_abs_pos_embed(state["pos_embed"], (37, 37), (16, 16), num_prefix_tokens=1)
    assert torch.allclose(found.pop("pos_embed"), resampled, atol=1e-6)
    assert all(torch.equal(value, state[key]) for key, value in found.items())


def test_the_registers_of_dinov2_are_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = "vit_small_patch14_reg4_dinov2"
    state = small_values(model)
    published = {**state, "register_tokens": state["reg_token"], "mask_token": torch.zeros(1, 384)}
    published["pos_embed"] = torch.rand(1, 1 + 37 * 37, 384)  # the class token has one
    del published["reg_token"]
    found = from_file(model, dict(published), monkeypatch)
    assert torch.equal(found["reg_token"], state["reg_token"])
    assert torch.equal(found["pos_embed"], published["pos_embed"][:, 1:])
    assert torch.equal(found["cls_token"], state["cls_token"] + published["pos_embed"][:, :1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.norm1.weight": None}, "1 missing, first .*norm1_weight"),
        ({"blocks.0.norm1.weight": torch.zeros(3)}, "1 of another shape, first"),
        ({"decoder.weight": torch.zeros(3)}, "1 unknown, first .*decoder.weight"),
        ({"pos_embed": torch.zeros(7)}, "timm cannot read the weights as those of the network"),
    ],
)
def test_a_file_that_does_not_fit_a_transformer_says_why(
    change: dict[str, Tensor | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {key: value for key, value in {**small_values("test_vit3"), **change}.items() if value is not None}
    with pytest.raises(WeightsError, match=message) as caught:
        from_file("test_vit3", state, monkeypatch)
    assert "file.pth" in str(caught.value) and len(str(caught.value).splitlines()) == 1
