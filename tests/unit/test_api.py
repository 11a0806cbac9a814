"""The library's functions: a network by its folder, its prediction, pictures and regions; wrong input is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from boxsup_dist import api
from boxsup_dist.config import PredictionSettings
from boxsup_dist.data.images import decode_image, decode_png
from boxsup_dist.data.palette import class_palette
from boxsup_dist.errors import CheckpointError, InputError, SettingError
from boxsup_dist.model import checkpoint
from boxsup_dist.model.inference import predict_log_probs, predict_probs
from tests.networks import build_network

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run directory's checkpoint, of a network of 3 classes whose scores differ."""
    torch.manual_seed(0)
    network = build_network("timm:test_resnet", 3, "none", output_stride=16)
    torch.nn.init.normal_(network.score.weight, std=1.0)
    log_probs = predict_log_probs(network.eval(), IMAGE)
    network.score.bias.data -= torch.from_numpy(np.median(log_probs, axis=(1, 2)))  # so that several win
    folder = str(tmp_path_factory.mktemp("run"))
    checkpoint.save(folder, checkpoint.CheckpointState(1, 0, 0, network.spec, network.state_dict()))
    return folder


@pytest.fixture(scope="module")
def network(saved: str) -> api.Network:
    return api.load_network(saved)


def test_a_network_predicts_what_the_stage_predicts(network: api.Network) -> None:
    label_map = api.predict(network, IMAGE)
    probs = api.predict_probs(network, IMAGE, flip=True)
    assert network.class_names == ("class 0", "class 1", "class 2") and network.uri.endswith("epoch-001-step-00000")
    assert label_map.dtype == np.uint8 and label_map.shape == (40, 56) and len(np.unique(label_map)) > 1
    settings = PredictionSettings()
    assert np.array_equal(label_map, predict_probs(network.module, IMAGE, settings).argmax(0))
    assert probs.shape == (3, 40, 56) and np.allclose(probs.sum(0), 1, atol=1e-5)
    assert np.allclose(probs, api.predict_probs(network, IMAGE[:, ::-1], flip=True)[..., ::-1], atol=1e-4)
    assert api.predict(network, IMAGE, crf="deeplab_v2").shape == (40, 56)


def test_pictures_and_label_maps_are_written_and_read(tmp_path: Path) -> None:
    label_map = np.zeros((40, 56), np.uint8)
    label_map[10:20, 30:50] = 2
    label_map[0, 0] = 255
    api.save_label_map(str(tmp_path / "map.png"), label_map)
    api.save_image(str(tmp_path / "photo.png"), IMAGE)
    assert np.array_equal(decode_png((tmp_path / "map.png").read_bytes()), label_map)
    assert np.array_equal(api.read_image(str(tmp_path / "photo.png")), IMAGE)
    names = ("background", "cat", "dog")
    drawn = api.draw(IMAGE, label_map, names)
    assert np.array_equal(drawn[label_map == 0], IMAGE[label_map == 0])
    assert (drawn[10, 30:50] == class_palette(names)[2]).all()  # the contour
    assert not np.array_equal(class_palette(names)[2], class_palette()[2])
    api.save_image(str(tmp_path / "overlay.jpg"), drawn)
    assert decode_image((tmp_path / "overlay.jpg").read_bytes()).shape == IMAGE.shape
    (found,) = api.regions(label_map, names)
    assert (found["class_id"], found["name"], found["area"], found["bbox"]) == (2, "dog", 200, [30, 10, 20, 10])
    assert np.array_equal(coco_mask.decode(found["segmentation"]), label_map == 2)


def test_wrong_input_is_named(network: api.Network, saved: str, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"not an image; file: .*notes\.jpg"):
        api.read_image(str(tmp_path / "notes.jpg"))
    with pytest.raises(InputError, match=r"missing\.jpg"):
        api.read_image(str(tmp_path / "missing.jpg"))
    with pytest.raises(CheckpointError, match="nothing"):
        api.load_network(str(tmp_path / "nothing"))
    with pytest.raises(SettingError, match=r"no such option.*scale.*one of scales"):
        api.predict(network, IMAGE, scale=2)
    with pytest.raises(SettingError, match=r"differ in size.*\(4, 4\)"):
        api.draw(IMAGE, np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match=r"config\.json"):
        list(api.read_labels(saved))
